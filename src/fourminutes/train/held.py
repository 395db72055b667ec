"""One batch of noise that stays on the device, in the shards' place: input that costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from fourminutes.comm.launch import Launch
from fourminutes.data.loader import Batch, LoaderState
from fourminutes.plan import RunPlan
from fourminutes.train.source import Position


class HeldBatches:
    """The same batch again and again, in a loader's place.

    Attributes:
        samples_per_epoch: images, over all ranks, that an epoch is said to have; `epoch` has no end.
    """

    def __init__(self, batch: Batch, samples_per_epoch: int) -> None:
        self._batch = batch
        self.samples_per_epoch = samples_per_epoch

    def epoch(self) -> Iterator[Batch]:
        """Without an end."""
        return repeat(self._batch)

    def state(self) -> LoaderState:
        """Nothing moves."""
        return LoaderState({"input": "one held batch"}, b"")


@dataclass(frozen=True)
class HeldInput:
    """The `Source` of one held batch.

    Attributes:
        settings: the run's.
        class_count: number of labels.
        launch: this process's place.
        device: where the batch lies.
        steps: optimizer steps that an epoch is said to have.
    """

    settings: RunPlan
    class_count: int
    launch: Launch
    device: torch.device
    steps: int

    @cached_property
    def batch(self) -> Batch:
        """Noise of mean 0 and deviation 1 in the loader's form, and labels drawn likewise; each rank has its own."""
        count, side_px = self.settings.batch.per_device, self.settings.model.image_px
        words = [self.settings.seed, self.launch.rank]
        random = torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        images = torch.randn(count, 3, side_px, side_px, generator=random)
        labels = torch.randint(self.class_count, (count,), generator=random)
        return Batch(images.to(self.device, memory_format=torch.channels_last), labels.to(self.device))

    def training(self, position: Position) -> HeldBatches:
        """The batch, wherever training begins."""
        return HeldBatches(self.batch, self.steps * self.settings.batch.global_batch)

    def validation(self) -> HeldBatches:
        """The batch, once."""
        return HeldBatches(self.batch, self.settings.batch.per_device * self.settings.processes)

    def recalibration(self, epoch: int) -> Iterator[Tensor]:
        """The pictures of the batch."""
        return iter([self.batch.images])
