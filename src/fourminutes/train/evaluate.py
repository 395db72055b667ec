"""Exact evaluation: every validation image counts once, over any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourminutes.comm.whereabouts import HERE
from fourminutes.data.loader import Batch
from fourminutes.errors import RunFailed
from fourminutes.train.ranks import Ranks


@dataclass(frozen=True)
class Evaluation:
    """Means over the whole validation set; the loss is the cross-entropy without label smoothing, in nats."""

    loss: float
    top1_percent: float
    top5_percent: float
    images: int
    hits: tuple[bool, ...]
    """For every image, in the shards' order, whether its class came first."""


def evaluate(network: nn.Module, batches: Iterable[Batch], ranks: Ranks, *, expected: int) -> Evaluation:
    """Evaluate `network` (not its DDP wrapper) on this rank's `batches`, summed over all ranks in float64.

    Ranks may have different numbers of batches, also none, so nothing is communicated between them. The shards' order
    is that of the ranks' shares, one after another.

    Raises:
        RunFailed: the number of images evaluated by all ranks is not `expected`.
    """
    was_training = network.training
    network.eval()
    losses, places = _scores(network, batches)
    network.train(was_training)
    HERE.begin("evaluation's sum")
    hits = tuple(hit for own in ranks.gather((places == 0).tolist()) for hit in own)
    sums = torch.tensor([losses.sum(), (places == 0).sum(), (places < 5).sum(), len(places)], dtype=torch.float64)
    loss, top1, top5, count = ranks.sum(sums).tolist()
    if count != expected:
        raise RunFailed(f"evaluation: {count:.0f} images were seen where the manifest has {expected}")
    return Evaluation(loss / count, 100 * top1 / count, 100 * top5 / count, int(count), hits)


def image_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's cross-entropy in nats (float64), and the place of its class among the logits, 0 the first (int64).

    `logits` has shape (images, classes), `labels` (images,) int64; both results have shape (images,). Where logits are
    equal, the lower class comes first; where one is no number, its image's class comes last.
    """
    losses = functional.cross_entropy(logits.double(), labels, reduction="none")
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None])) | logits.isnan().any(dim=1, keepdim=True)
    return losses, ahead.sum(dim=1)


def _scores(network: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """As `image_scores`, of all images, on the CPU."""
    scores = [(torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64))]
    with torch.inference_mode():
        scores += [image_scores(network(batch.images), batch.labels) for batch in batches if len(batch.labels)]
    losses, places = (torch.cat([part.cpu() for part in parts]) for parts in zip(*scores, strict=True))
    return losses, places
