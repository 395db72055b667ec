"""A clock that keeps every step apart, without making the host wait for the device between two of them."""

from __future__ import annotations

import torch

from fourminutes.record import StepTimes
from fourminutes.train.accounting import PARTS, Mark, Part, StepClock, seconds_between

_Lap = tuple[Part, Mark, Mark]


class Timeline(StepClock):
    """A `StepClock` whose laps are also kept by step.

    They are worked out only when all is done: a clock that asked a GPU after every step would hold its host back, which
    in a training is already at the next step.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._laps: list[_Lap] = []
        self._steps: list[tuple[list[_Lap], float]] = []

    def lap(self, part: Part) -> None:
        """As `StepClock.lap`."""
        start = self._last
        super().lap(part)
        self._laps.append((part, start, self._last))

    def end_step(self, exposed_s: float) -> None:
        """A step ends here; `exposed_s` of its backward passes was waiting for gradients, in seconds."""
        self._steps.append((self._laps, exposed_s))
        self._laps = []

    def steps(self) -> list[StepTimes]:
        """Every step so far, whose parts add up to its whole; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [_times(laps, exposed_s) for laps, exposed_s in self._steps]


def summed(steps: list[StepTimes]) -> StepTimes:
    """Several steps' times as one."""
    sums = {name: sum(getattr(step, name) for step in steps) for name in StepTimes.model_fields}
    return StepTimes.model_validate(sums)


def _times(laps: list[_Lap], exposed_s: float) -> StepTimes:
    spent = dict.fromkeys(PARTS, 0.0)
    for part, start, end in laps:
        spent[part] += seconds_between(start, end)
    spent["backward"] -= exposed_s
    spent["exposed_reduce"] += exposed_s
    return StepTimes(total_s=sum(spent.values()), **{f"{part}_s": spent[part] for part in PARTS})
