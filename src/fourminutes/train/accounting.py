"""Where the time goes: one lap after another, so that the parts of an epoch add up to the whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, get_args

import torch

from fourminutes.record import StepTimes

Part = Literal["input_wait", "forward", "backward", "exposed_reduce", "optimizer", "evaluation", "checkpoint", "other"]
PARTS: tuple[Part, ...] = get_args(Part)

Mark = float | torch.cuda.Event


def seconds_between(start: Mark, end: Mark) -> float:
    """Seconds from one mark to another of the same clock; events have to have happened."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    seconds: float = start.elapsed_time(end) / 1000
    return seconds


class StepClock:
    """Divides the time of a device's work into parts.

    On the CPU a mark is a moment of the clock. On a GPU it is an event in the stream of kernels, since the host runs
    ahead of the device: the gap between two events is what the device did, or waited for, in between.
    """

    def __init__(self, device: torch.device, spent_s: Mapping[str, float] | None = None) -> None:
        """Start a lap now, on top of what `spent_s` (as `spent_s` returned it) says was spent before."""
        self._device = device
        self._spent_s: dict[Part, float] = {part: (spent_s or {}).get(part, 0.0) for part in PARTS}
        self._pending: list[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = []
        self._last = self._mark()

    def lap(self, part: Part) -> None:
        """All time since the lap before was spent on `part`."""
        now = self._mark()
        if isinstance(now, float) and isinstance(self._last, float):
            self._spent_s[part] += now - self._last
        elif isinstance(now, torch.cuda.Event) and isinstance(self._last, torch.cuda.Event):
            self._pending.append((part, self._last, now))
        self._last = now

    def pass_over(self) -> None:
        """The time since the lap before is none of an epoch's, such as that of a preparation."""
        self._last = self._mark()

    def move(self, seconds: float, source: Part, target: Part) -> None:
        """Book `seconds` that were measured within `source` under `target`."""
        self._spent_s[source] -= seconds
        self._spent_s[target] += seconds

    def spent_s(self) -> dict[Part, float]:
        """Seconds spent on each part so far; waits for the device."""
        if self._pending:
            torch.cuda.synchronize(self._device)
        for part, start, end in self._pending:
            self._spent_s[part] += seconds_between(start, end)
        self._pending.clear()
        return dict(self._spent_s)

    def take(self) -> StepTimes:
        """What was spent since the last `take`, as the record has it; the clock goes on from zero."""
        spent = self.spent_s()
        self._spent_s = dict.fromkeys(PARTS, 0.0)
        return StepTimes(total_s=sum(spent.values()), **{f"{part}_s": spent[part] for part in PARTS})

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
