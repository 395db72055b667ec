"""The parts of a run, put together: network, optimizer, loaders, and the processes around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fourminutes.comm.hook import ReduceState, reduce_hook
from fourminutes.comm.launch import Launch, device_of
from fourminutes.comm.topology import Topology
from fourminutes.data.loader import Loader, LoaderState, training_loader, validation_loader
from fourminutes.models import build_model
from fourminutes.optim import build_optimizer
from fourminutes.plan import RunPlan
from fourminutes.record import Manifest
from fourminutes.train.ranks import Ranks


@dataclass(frozen=True)
class Parts:
    """What one process trains with; `network` is `model` itself, or its DDP wrapper where there are several."""

    settings: RunPlan
    ranks: Ranks
    device: torch.device
    model: nn.Module
    network: nn.Module
    reduce_state: ReduceState | None
    optimizer: Optimizer
    training: Loader
    validation: Loader
    train_images: int
    val_images: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in the training set.

        The loader gives every process at least floor(images / processes) images an epoch, and so as many whole
        batches as this needs.
        """
        return self.train_images // self.settings.batch.global_batch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.settings.epochs

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes: fp32, or bf16 where that is safe; weights and gradients stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def without_reduce(self) -> AbstractContextManager[object]:
        """Within this, gradients accumulate on each process alone."""
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()


def set_up(
    settings: RunPlan,
    manifest: Manifest,
    folder: Path,
    launch: Launch,
    topology: Topology,
    ranks: Ranks,
    state: LoaderState | None,
) -> Parts:
    """Put the parts together; the loader goes on from `state` where there is one."""
    device = device_of(launch)
    seed_everything(settings.seed, launch.rank)
    settle_arithmetic()
    model = build_model(settings.model, len(manifest.classes), seed=settings.seed).to(device)
    network, reduce_state = _distributed(model, settings, topology)
    training, validation = _loaders(settings, manifest, folder, launch, device, state)
    return Parts(
        settings=settings,
        ranks=ranks,
        device=device,
        model=model,
        network=network,
        reduce_state=reduce_state,
        optimizer=build_optimizer(model, settings.optimizer),
        training=training,
        validation=validation,
        train_images=manifest.splits["train"].samples,
        val_images=manifest.splits["val"].samples,
    )


def seed_everything(seed: int, rank: int) -> None:
    """Seed torch's generators, differently by rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))


def settle_arithmetic() -> None:
    """Let fp32 be fp32, never TF32 with its 10 bits, and choose cuDNN's kernels for equal bits rather than speed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def settle_buckets(parts: Parts) -> None:
    """Let DDP lay out its buckets for good, by one throw-away backward pass.

    DDP starts with one bucket and lays them out anew after the first backward pass, in the order in which gradients
    became ready. Sums over another layout differ in their last bits, so a run that goes on from a checkpoint would
    differ from one that was never interrupted. After this pass both have the same layout from their first real step.
    In evaluation mode, so that neither batch norm's statistics nor the random state move; before the run's clock
    starts, since it is no part of any epoch.
    """
    if parts.reduce_state is None:
        return
    side = parts.settings.model.image_px
    parts.network.eval()
    with parts.autocast():
        logits = parts.network(torch.zeros(2, 3, side, side, device=parts.device))
    logits.float().sum().backward()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.network.train()
    parts.reduce_state.take_exposed_s()


def _distributed(model: nn.Module, settings: RunPlan, topology: Topology) -> tuple[nn.Module, ReduceState | None]:
    """The model wrapped so that its gradients are averaged over the processes while the backward pass runs."""
    if settings.processes == 1:
        return model, None
    network = DistributedDataParallel(model, bucket_cap_mb=settings.reduce.bucket_mib, gradient_as_bucket_view=True)
    # Else rank 0's batch norm statistics would overwrite the others' at every step. Set here, since the constructor's
    # argument for it has another name from torch 2.13 on.
    network.broadcast_buffers = False
    state = ReduceState(topology, settings.reduce)
    network.register_comm_hook(state, reduce_hook)
    return network, state


def _loaders(
    settings: RunPlan, manifest: Manifest, folder: Path, launch: Launch, device: torch.device, state: LoaderState | None
) -> tuple[Loader, Loader]:
    form = {
        "image_px": settings.model.image_px,
        "batch": settings.batch.per_device,
        "rank": launch.rank,
        "world_size": launch.world_size,
        "device_id": device.index,
    }
    training = training_loader(folder, manifest, settings.loader, **form, seed=settings.seed, state=state)
    return training, validation_loader(folder, manifest, settings.loader, **form)
