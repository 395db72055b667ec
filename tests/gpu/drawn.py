"""A trainer on pictures that are drawn on the GPU, so that its steps can be tested where DALI is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fourminutes.comm.launch import ALONE
from fourminutes.comm.topology import discover
from fourminutes.data.loader import Batch, LoaderState
from fourminutes.plan import RunPlan
from fourminutes.record import Manifest
from fourminutes.train.capture import CapturedStep, CudaGraphs
from fourminutes.train.course import Course
from fourminutes.train.loop import take_step
from fourminutes.train.ranks import Ranks
from fourminutes.train.setup import Parts, set_up
from fourminutes.train.source import Input, Position
from fourminutes.train.step import Stepper, eager_step

CLASSES = 10
IMAGES = 1600
RUN: dict[str, Any] = {
    "epochs": 2,
    "label_smoothing": 0.1,
    "precision": "half",
    "model": {"name": "resnet_small", "image_px": 32},
    "optimizer": {"kind": "lars", "weight_decay": 0.01},
    "schedule": {"base_rate": 1.0, "warmup_epochs": 1},
    "batch": {"global_batch": 32, "per_device": 32},
    "loss_scale": {"initial": 256.0, "growth_steps": 7},
}


class DrawnBatches:
    """In a loader's place: batch number n is drawn from the seed n."""

    samples_per_epoch = IMAGES

    def __init__(self, batch: int, image_px: int, device: torch.device, given: int = 0) -> None:
        self._batch, self._image_px, self._device, self._given = batch, image_px, device, given

    def epoch(self) -> Iterator[Batch]:
        """Without an end."""
        while True:
            self._given += 1
            yield drawn(self._batch, self._image_px, self._device, seed=self._given)

    def state(self) -> LoaderState:
        """How many batches were given."""
        return LoaderState({"given": self._given, "first_epoch": 0}, b"drawn")


@dataclass(frozen=True)
class DrawnInput(Input):
    """Drawn batches in the shards' place."""

    def training(self, position: Position) -> Any:
        """As many as were given before `position` are passed over."""
        given = int(position.state.identity["given"]) if position.state else 0
        return DrawnBatches(self.settings.batch.per_device, self.settings.model.image_px, self.device, given)

    def validation(self) -> Any:
        """Never read here."""
        return DrawnBatches(1, 1, self.device)


def drawn(count: int, image_px: int, device: torch.device, *, seed: int) -> Batch:
    """Noise over a faint pattern a class, in the loader's form."""
    patterns = torch.randn(CLASSES, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = patterns[labels] / 2 + torch.randn(count, 3, image_px, image_px, generator=generator)
    return Batch(images.to(device, memory_format=torch.channels_last), labels.to(device))


def settings_of(**changes: Any) -> RunPlan:
    """`RUN` with changes laid over it."""
    return RunPlan.model_validate(RUN | changes)


def parts_of(device: torch.device, position: Position = Position(), **changes: Any) -> Parts:  # noqa: B008 - frozen
    """The trainer's parts, on drawn pictures."""
    manifest = Manifest.model_construct(classes=tuple(f"n{number:08d}" for number in range(CLASSES)))
    source = DrawnInput(settings_of(**changes), manifest, Path(), ALONE, device)
    return set_up(source, discover(ALONE), Ranks.of(ALONE, timeout_s=60), position)


def eager(parts: Parts) -> Stepper:
    """Steps whose kernels are launched one by one."""
    return partial(eager_step, parts)


def captured(parts: Parts) -> Stepper:
    """Steps as CUDA graphs."""
    return CapturedStep(parts, CudaGraphs())


def walked(parts: Parts, course: Course, stepper: Stepper, steps: int, *, bad: int = 0) -> list[Any]:
    """The news of some steps; of number `bad`, a picture is infinite."""
    batches = _spoilt(parts, bad)
    return [take_step(parts, course, batches, stepper) for _ in range(steps)]


def _spoilt(parts: Parts, bad: int) -> Iterator[Batch]:
    for number, batch in enumerate(parts.training.epoch()):
        if number // parts.settings.micro_batches + 1 == bad:
            batch.images[0] = torch.inf
        yield batch


def bits(parts: Parts) -> dict[str, torch.Tensor]:
    """A copy of everything that a step changes in the network and its optimizer, on the CPU."""
    momenta = {
        f"momentum {number}": state["momentum_buffer"] for number, state in enumerate(parts.optimizer.state.values())
    }
    return {name: tensor.detach().cpu().clone() for name, tensor in (parts.model.state_dict() | momenta).items()}


def differing(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that are not equal bit for bit, which NaN are not either."""
    assert these.keys() == those.keys()
    return [name for name, tensor in these.items() if not torch.equal(tensor, those[name])]
