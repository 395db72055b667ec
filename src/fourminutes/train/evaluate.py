"""Exact evaluation: every validation image counts once, over any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourminutes.data.loader import Batch
from fourminutes.errors import RunFailed
from fourminutes.train.ranks import Ranks

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Evaluation:
    """Means over the whole validation set; the loss is the cross-entropy without label smoothing, in nats."""

    loss: float
    top1_percent: float
    top5_percent: float
    images: int


def evaluate(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks, *, expected: int, autocast: AbstractContextManager[object]
) -> Evaluation:
    """Evaluate `model` (not its DDP wrapper) on this rank's `batches`, summed over all ranks in float64.

    Ranks may have different numbers of batches, also empty ones, so nothing is communicated between them.

    Raises:
        RunFailed: the number of images evaluated by all ranks is not `expected`.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.inference_mode(), autocast:
        for batch in batches:
            if len(batch.labels):
                sums += batch_sums(model(batch.images), batch.labels).cpu()
    model.train(was_training)
    loss, top1, top5, count = ranks.sum(sums).tolist()
    if count != expected:
        raise RunFailed(f"evaluation: {count:.0f} images were seen where the manifest has {expected}")
    return Evaluation(loss / count, 100 * top1 / count, 100 * top5 / count, int(count))


def batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over one batch: (cross-entropy, top-1 hits, top-5 hits, images), float64, shape (4,).

    `logits` has shape (images, classes), `labels` (images,) int64. With fewer than five classes every image is a
    top-5 hit.
    """
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    top1, top5 = hits[:, 0].sum(), hits.sum()
    return torch.stack([loss, top1.double(), top5.double(), torch.full_like(loss, len(labels))])


def average_running_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Replace batch norm's running means and variances by their means over all ranks: all evaluate one model."""
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    ranks.average_(buffer for norm in norms for buffer in norm.buffers())
