"""One step's communication, event by event: buckets that become ready, queue, wait and share links. No torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fourminutes.scale.network import Level, Part, total_s

# Times that differ by less are the same event.
_INSTANT_S = 1e-12


@dataclass(frozen=True)
class Travel:
    """A bucket's way: ready, begun, and done, in seconds."""

    ready_s: float
    begin_s: float
    end_s: float


@dataclass
class _Lane:
    """What is queued in one lane, and what of the bucket at its head is left."""

    waiting: deque[int]
    bucket: int | None = None
    left: deque[tuple[Level | None, float]] = field(default_factory=deque)


def communicate(ready_s: Sequence[float], ways: Sequence[Sequence[Part]], lanes: int = 1) -> tuple[Travel, ...]:
    """When each bucket is reduced.

    Bucket number i queues in lane i modulo `lanes`; a lane takes its buckets in order, each when it is ready and those
    before it in the lane are done. A bucket goes through its stages one after another. Those that move bytes over one
    level at the same time share it equally, and what waits for latencies shares nothing.

    Args:
        ready_s: when each bucket may begin, in the order of reduction.
        ways: the stages of each.
        lanes: buckets that may be on their way at once.
    """
    if lanes == 1:
        return _in_turn(ready_s, ways)
    queues = [_Lane(deque(range(lane, len(ready_s), lanes))) for lane in range(min(lanes, max(1, len(ready_s))))]
    begins, ends = [0.0] * len(ready_s), [0.0] * len(ready_s)
    now_s = 0.0
    while any(lane.bucket is not None or lane.waiting for lane in queues):
        for lane in queues:
            _enter(lane, now_s, ready_s, ways, begins, ends)
        now_s = _advance(queues, now_s, ready_s, ends)
    return tuple(Travel(*times) for times in zip(ready_s, begins, ends, strict=True))


def _in_turn(ready_s: Sequence[float], ways: Sequence[Sequence[Part]]) -> tuple[Travel, ...]:
    """The same in one lane, where nothing is shared: many times faster, which sweeps over thousands of steps need."""
    travels, end_s = [], 0.0
    for ready, parts in zip(ready_s, ways, strict=True):
        begin_s = max(ready, end_s)
        end_s = begin_s + total_s(parts)
        travels.append(Travel(ready, begin_s, end_s))
    return tuple(travels)


def last_ends_s(
    ready_s: Sequence[float], ways: Sequence[Sequence[Part]], lanes: int, factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """When the last bucket is reduced, for each of several factors on the moments of readiness; in seconds."""
    if lanes > 1:
        ends = [communicate([factor * ready for ready in ready_s], ways, lanes) for factor in factors]
        return np.array([max(travel.end_s for travel in travels) for travels in ends])
    end_s = np.zeros_like(factors)
    for ready, parts in zip(ready_s, ways, strict=True):
        end_s = np.maximum(factors * ready, end_s) + total_s(parts)
    return end_s


def _enter(
    lane: _Lane,
    now_s: float,
    ready_s: Sequence[float],
    ways: Sequence[Sequence[Part]],
    begins: list[float],
    ends: list[float],
) -> None:
    """Let the next bucket begin where it is ready and the lane free; one without stages is done at once."""
    while lane.bucket is None and lane.waiting and ready_s[lane.waiting[0]] <= now_s + _INSTANT_S:
        number = lane.waiting.popleft()
        begins[number] = ends[number] = now_s
        left = deque(_phases(ways[number]))
        if left:
            lane.bucket, lane.left = number, left


def _phases(parts: Sequence[Part]) -> list[tuple[Level | None, float]]:
    """Stretches of time one after another: on no link for latency, then on the level's."""
    both = [((None, part.latency_s), (part.level, part.wire_s)) for part in parts]
    return [phase for pair in both for phase in pair if phase[1] > 0]


def _advance(queues: Sequence[_Lane], now_s: float, ready_s: Sequence[float], ends: list[float]) -> float:
    """Go on to the next event; the time of it."""
    busy = [lane for lane in queues if lane.bucket is not None]
    shares = {level: sum(lane.left[0][0] == level for lane in busy) for level in ("inner", "outer")}
    slowness = [shares[lane.left[0][0]] if lane.left[0][0] else 1 for lane in busy]
    comes = (ready_s[lane.waiting[0]] - now_s for lane in queues if lane.bucket is None and lane.waiting)
    passes = (lane.left[0][1] * slow for lane, slow in zip(busy, slowness, strict=True))
    step_s = max(0.0, min((*comes, *passes), default=0.0))
    for lane, slow in zip(busy, slowness, strict=True):
        level, left_s = lane.left.popleft()
        left_s -= step_s / slow
        if left_s > _INSTANT_S:
            lane.left.appendleft((level, left_s))
        if not lane.left and lane.bucket is not None:
            ends[lane.bucket], lane.bucket = now_s + step_s, None
    return now_s + step_s


def busy_s(travels: Sequence[Travel]) -> float:
    """Time in which some bucket was on its way, in seconds."""
    total, until = 0.0, -math.inf
    for travel in sorted(travels, key=lambda travel: travel.begin_s):
        total += max(0.0, travel.end_s - max(travel.begin_s, until))
        until = max(until, travel.end_s)
    return total
