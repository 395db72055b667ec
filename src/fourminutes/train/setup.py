"""The parts of a run, put together: network, optimizer, loaders, and the processes around them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import Fused, fuse
from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.topology import Topology
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.optim import build_optimizer
from fourminutes.plan import ReducePlan, RunPlan
from fourminutes.train.agreement import network_in_words, require_agreement
from fourminutes.train.batchnorm import share_statistics
from fourminutes.train.loss_scale import LossScale
from fourminutes.train.precision import in_precision, settle_arithmetic
from fourminutes.train.ranks import Ranks
from fourminutes.train.source import Batches, Position, Source
from fourminutes.train.tuning import black_pictures, settled_reduce


@dataclass(frozen=True)
class Parts:
    """What one process trains with.

    Attributes:
        model: the bare model, whose parameters the optimizer updates and checkpoints hold.
        network: `model` as it computes in the run's precision; what is evaluated.
        parallel: `network`, in DDP where there are several processes; what is trained.
    """

    settings: RunPlan
    ranks: Ranks
    device: torch.device
    model: nn.Module
    network: nn.Module
    parallel: nn.Module
    reduce_state: HybridState | None
    optimizer: Optimizer
    loss_scale: LossScale
    input: Source
    training: Batches
    validation: Batches

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """The parameters that are trained, in the model's order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @cached_property
    def running_statistics(self) -> list[Tensor]:
        """Batch norm's running means and variances, which a forward pass changes."""
        return [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]

    @property
    def train_images(self) -> int:
        """Training images in all."""
        return self.training.samples_per_epoch

    @property
    def val_images(self) -> int:
        """Validation images in all."""
        return self.validation.samples_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in the training set.

        The loader gives every process at least floor(images / processes) images an epoch, and so as many whole
        batches as this needs.
        """
        return self.train_images // self.settings.batch.global_batch

    @property
    def total_steps(self) -> int:
        """Global batches of the whole run, a step each."""
        return self.steps_per_epoch * self.settings.epochs

    def close(self) -> None:
        """End the thread that reduces gradients."""
        if self.reduce_state is not None:
            self.reduce_state.close()

    def without_reduce(self) -> AbstractContextManager[object]:
        """Within this, gradients accumulate on each process alone."""
        if isinstance(self.parallel, DistributedDataParallel | FlatParallel):
            return self.parallel.no_sync()
        return nullcontext()


def set_up(
    source: Source, topology: Topology, ranks: Ranks, position: Position, kept_tuning: Path | None = None
) -> Parts:
    """Put the parts together; the loader goes on from `position`.

    Args:
        source: settings and pictures.
        topology: the processes and their groups.
        ranks: the processes.
        position: where the input begins.
        kept_tuning: see `settled_reduce`.
    """
    settings, device, launch = source.settings, source.device, source.launch
    seed_everything(settings.seed, launch.rank, position.epoch)
    settle_arithmetic()
    model = build_model(settings.model, source.class_count, seed=settings.seed).to(device)
    model = share_statistics(model, settings.batch.bn_span, launch.rank, launch.world_size)
    network = in_precision(model, settings.precision, device)
    require_agreement(ranks, topology.hosts, {"network": network_in_words(model)})
    reduce = settled_reduce(settings, network, launch, topology, ranks, kept_tuning)
    parallel, reduce_state = distributed(network, settings.model_copy(update={"reduce": reduce}), topology)
    return Parts(
        settings=settings,
        ranks=ranks,
        device=device,
        model=model,
        network=network,
        parallel=parallel,
        reduce_state=reduce_state,
        optimizer=build_optimizer(model, settings.optimizer),
        loss_scale=LossScale.of(settings, device),
        input=source,
        training=source.training(position),
        validation=source.validation(),
    )


def seed_everything(seed: int, rank: int, epoch: int = 0) -> None:
    """Seed torch's generators, differently by rank, and by the epoch with which training begins."""
    words = [seed, rank, epoch] if epoch else [seed, rank]
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def settle_buckets(parts: Parts) -> None:
    """Let DDP lay out its buckets for good, by throw-away backward passes.

    DDP starts with one bucket and lays them out anew after the first backward pass, in the order in which gradients
    became ready. Sums over another layout differ in their last bits, so a run that goes on from a checkpoint would
    differ from one that was never interrupted. After this both have the same layout from their first real step: the
    first pass makes DDP lay them out anew, the second tells `HybridState` what came of it.
    In evaluation mode, so that neither batch norm's statistics nor the random state move; before the run's clock
    starts, since it is no part of any epoch.
    """
    if (state := parts.reduce_state) is None:
        return
    if isinstance(parts.parallel, DistributedDataParallel):
        _lay_out_buckets(parts)
    state.take_exposed_s()
    require_agreement(parts.ranks, state.topology.hosts, {"gradients' buckets": _in_words(state.layout)})


def _lay_out_buckets(parts: Parts) -> None:
    pictures = black_pictures(parts.settings, parts.device)
    parts.parallel.eval()
    for _ in range(2):
        parts.parallel(pictures).sum().backward()
        parts.optimizer.zero_grad(set_to_none=True)
    parts.parallel.train()


def _in_words(layout: Sequence[int]) -> str:
    digest = hashlib.sha256(str(layout).encode()).hexdigest()[:8]
    return f"{digest} ({len(layout)} buckets, the largest of {max(layout):,} elements)"


def distributed(network: nn.Module, settings: RunPlan, topology: Topology) -> tuple[nn.Module, HybridState | None]:
    """The network wrapped so that its gradients are averaged over the processes while the backward pass runs.

    Raises:
        UserError: the plan's fusion or arrangement doesn't fit the network or the processes.
    """
    trained: nn.Module = torch.compile(network) if settings.compile else network  # type: ignore[assignment]
    if settings.processes == 1:
        return trained, None
    state = HybridState(topology, settings.reduce)
    if settings.reduce.front_end == "flat":
        return FlatParallel(trained, state, _fused(trained, settings.reduce)), state
    parallel = DistributedDataParallel(trained, bucket_cap_mb=settings.reduce.bucket_mib, gradient_as_bucket_view=True)
    # Else rank 0's batch norm statistics would overwrite the others' at every step. Set here, since the constructor's
    # argument for it has another name from torch 2.13 on.
    parallel.broadcast_buffers = False
    parallel.register_comm_hook(state, hybrid_hook)
    return parallel, state


def _fused(network: nn.Module, settings: ReducePlan) -> Fused:
    sizes = [4 * weight.numel() for weight in network.parameters() if weight.requires_grad]
    try:
        return fuse(sizes, threshold_bytes=settings.bucket_mib * 2**20, segments=settings.segments)
    except ValueError as error:
        raise UserError(f"reduce: {error}") from error
