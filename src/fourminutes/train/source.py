"""Where a training's pictures come from: a data set's shards, or whatever else has the same form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fourminutes.comm.launch import Launch
from fourminutes.data.loader import Batch, Loader, LoaderState, training_loader, validation_loader
from fourminutes.plan import RunPlan
from fourminutes.record import Manifest

_RECALIBRATION_STREAM = 1  # tells the seed of the pictures for recalibration from that of training


@dataclass(frozen=True)
class Position:
    """Where the training's input begins.

    Attributes:
        epoch: the epoch, from 0, with which a new loader begins.
        state: a saved loader's state; None begins with the epoch's first batch.
    """

    epoch: int = 0
    state: LoaderState | None = None


class Batches(Protocol):
    """What a `Loader` is to a training: batches, epoch after epoch."""

    samples_per_epoch: int

    def epoch(self) -> Iterator[Batch]:
        """As `Loader.epoch`."""

    def state(self) -> LoaderState:
        """As `Loader.state`."""


class Source(Protocol):
    """What a training reads, on one process."""

    @property
    def settings(self) -> RunPlan:
        """The run's."""

    @property
    def launch(self) -> Launch:
        """This process's place."""

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""

    @property
    def class_count(self) -> int:
        """Number of labels."""

    def training(self, position: Position) -> Batches:
        """The training batches from `position` on."""

    def validation(self) -> Batches:
        """The validation batches, the same in every epoch."""

    def recalibration(self, epoch: int) -> Iterator[Tensor]:
        """Pictures on which to measure batch norm's statistics anew after `epoch`."""


@dataclass(frozen=True)
class Input:
    """The `Source` of a data set's shards."""

    settings: RunPlan
    manifest: Manifest
    folder: Path
    launch: Launch
    device: torch.device

    @property
    def class_count(self) -> int:
        """Number of labels."""
        return len(self.manifest.classes)

    def training(self, position: Position) -> Loader:
        """The training batches from `position` on."""
        return training_loader(
            self.folder,
            self.manifest,
            self.settings.loader,
            **self._share,
            seed=self.settings.seed,
            first_epoch=position.epoch,
            state=position.state,
        )

    def validation(self) -> Loader:
        """The validation batches, the same in every epoch."""
        return validation_loader(self.folder, self.manifest, self.settings.loader, **self._share)

    def recalibration(self, epoch: int) -> Iterator[Tensor]:
        """Training pictures on which to measure batch norm's statistics anew after `epoch`; all training is as without.

        They come from a loader of their own, so that the training's order of pictures stays as it is.
        """
        batch, world_size = self.settings.batch.per_device, self.launch.world_size
        wanted = -(-self.settings.evaluation.recalibration_images // (batch * world_size))
        # No more than what every rank has as whole batches, so that all make as many forward passes.
        batches = min(wanted, self.manifest.splits["train"].samples // world_size // batch)
        own_seed = np.random.SeedSequence([self.settings.seed, _RECALIBRATION_STREAM]).generate_state(1)[0]
        loader = replace(self, settings=self.settings.model_copy(update={"seed": int(own_seed)})).training(
            Position(epoch)
        )
        return (batch.images for batch in islice(loader.epoch(), batches))

    @property
    def _share(self) -> dict[str, Any]:
        """What of the pictures, and in which form, this process gets."""
        return {
            "image_px": self.settings.model.image_px,
            "batch": self.settings.batch.per_device,
            "rank": self.launch.rank,
            "world_size": self.launch.world_size,
            "device_id": self.device.index,
        }
