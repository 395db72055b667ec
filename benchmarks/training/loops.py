"""The loops that are measured: the trainer's own step, and a plain loop of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional
from torch.optim import SGD

from fourminutes.comm.launch import ALONE, TIMEOUT_S
from fourminutes.comm.topology import discover
from fourminutes.data.loader import Batch
from fourminutes.models import build_model
from fourminutes.plan import BatchPlan, LoaderPlan, ModelPlan, Precision, RunPlan, SchedulePlan
from fourminutes.record import Manifest
from fourminutes.train.course import begin
from fourminutes.train.loop import stepper_of, take_step
from fourminutes.train.precision import settle_arithmetic
from fourminutes.train.ranks import Ranks
from fourminutes.train.setup import set_up
from fourminutes.train.source import Input, Position

CLASSES = 1000
IMAGENET_IMAGES = 1_281_167
RATE = 1e-4  # so low that the weights stay where they are, and no loss runs off
MOMENTUM, DECAY = 0.9, 5e-5
CLASS_NAMES = tuple(f"n{number:08d}" for number in range(CLASSES))


class Loop(Protocol):
    """Something that trains, step by step."""

    def settle(self) -> None:
        """Set the process-wide switches of arithmetic as this loop has them."""

    def step(self) -> None:
        """One optimizer step."""


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    Attributes:
        loop: the trainer's, or the plain one.
        input: one batch held on the device, or batches that DALI makes from shards.
        precision: of the plan; the plain loop runs under autocast to fp16 for both `amp` and `half`.
        cuda_graph: whether the trainer's step is recorded and replayed.
        batch: images a device.
    """

    loop: Literal["ours", "plain"]
    input: Literal["held", "shards"]
    precision: Precision
    compile: bool
    cuda_graph: bool
    batch: int


@dataclass(frozen=True)
class Shards:
    """A data set as made, and in words what it was made from."""

    folder: Path
    manifest: Manifest
    made_from: str


@dataclass(frozen=True)
class Bench:
    """What all cases have in common."""

    model: ModelPlan
    loader: LoaderPlan
    device: torch.device
    shards: Shards | None

    def settings(self, case: Case) -> RunPlan:
        """The case as a run of a plan: LARS, as by default, at a rate that changes next to nothing."""
        return RunPlan(
            precision=case.precision,
            compile=case.compile,
            cuda_graph=case.cuda_graph,
            model=self.model,
            batch=BatchPlan(global_batch=case.batch, per_device=case.batch),
            schedule=SchedulePlan(base_rate=RATE, decay="constant"),
            loader=self.loader,
        )

    def build(self, case: Case, held: Batch) -> Loop:
        """The loop of `case`, on the batch `held` unless it reads shards."""
        settings = self.settings(case)
        if case.loop == "plain":
            return Plain(settings, held)
        if case.input == "held":
            manifest = Manifest.model_construct(classes=CLASS_NAMES)
            return Ours(HeldInput(settings, manifest, Path(), ALONE, self.device, held))
        assert self.shards is not None
        # As many outputs as on ImageNet, however few classes the shards hold.
        manifest = self.shards.manifest.model_copy(update={"classes": CLASS_NAMES})
        return Ours(ShardInput(settings, manifest, self.shards.folder, ALONE, self.device))

    def hold(self, batch: int) -> Batch:
        """A batch on the device, in the loader's form: noise of mean 0 and deviation 1, and labels drawn likewise."""
        side_px = self.model.image_px
        random = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, side_px, side_px, generator=random)
        labels = torch.randint(CLASSES, (batch,), generator=random)
        return Batch(images.to(self.device, memory_format=torch.channels_last), labels.to(self.device))


class Ours:
    """The trainer's own parts, and its own step: what is measured is what trains."""

    def __init__(self, source: Input) -> None:
        self.parts = set_up(source, discover(ALONE), Ranks.of(ALONE, timeout_s=TIMEOUT_S), Position())
        self.course, self._stepper = begin(self.parts), stepper_of(self.parts)
        self._batches = self.parts.training.epoch()

    def settle(self) -> None:
        """As the trainer has it: kernels of equal bits, no TF32."""
        settle_arithmetic()

    def step(self) -> None:
        """One optimizer step, with loss scale, overflow check, batch norm's way back and the clock."""
        take_step(self.parts, self.course, self._batches, self._stepper)


class Plain:
    """What one writes first: channels_last, autocast, GradScaler, torch's fused SGD, cuDNN's fastest kernels."""

    def __init__(self, settings: RunPlan, held: Batch) -> None:
        device = held.images.device
        model = build_model(settings.model, CLASSES, seed=0).to(device, memory_format=torch.channels_last)
        self._network: Any = torch.compile(model) if settings.compile else model
        self._optimizer = SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
        self._dtype = autocast_dtype(settings.precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)
        self._batches = repeat(held)

    def settle(self) -> None:
        """As torch comes, with cuDNN trying which kernels are fastest."""
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True

    def step(self) -> None:
        """One optimizer step."""
        images, labels = next(self._batches)
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast(images.device.type):
            loss = functional.cross_entropy(self._network(images), labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _autocast(self, device_type: str) -> AbstractContextManager[object]:
        return torch.autocast(device_type, self._dtype) if self._dtype else nullcontext()


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """What the plain loop runs under, to be compared with a run in `precision`."""
    return {"fp32": None, "bf16": torch.bfloat16}.get(precision, torch.float16)


@dataclass(frozen=True)
class Stream:
    """Batches without end, in a loader's place: an epoch as long as ImageNet's."""

    batches: Iterator[Batch]
    samples_per_epoch: int = IMAGENET_IMAGES

    def epoch(self) -> Iterator[Batch]:
        """All that are still to come."""
        return self.batches


class _EndlessInput(Input):
    """Input that never ends, and that nothing is evaluated on."""

    def validation(self) -> Any:
        """Nothing."""
        return Stream(iter(()))


@dataclass(frozen=True)
class HeldInput(_EndlessInput):
    """The same batch again and again, which is on the device already."""

    held: Batch

    def training(self, position: Position) -> Any:
        """The batch, endlessly."""
        return Stream(repeat(self.held))


class ShardInput(_EndlessInput):
    """What the trainer reads, epoch after epoch; a remainder that fills no batch is passed over, as in training."""

    def training(self, position: Position) -> Any:
        """Full batches, endlessly."""
        return Stream(_full_batches(super().training(position), self.settings.batch.per_device))


def _full_batches(loader: Any, size: int) -> Iterator[Batch]:
    while True:
        yield from (batch for batch in loader.epoch() if len(batch.labels) == size)
