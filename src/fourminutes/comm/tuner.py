"""Choosing arrangements and bucket size from measured times. No torch.

Times between two measured sizes are interpolated linearly, which is exact where t = alpha + beta M, and beyond the
largest they go on with the last slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fourminutes.comm.fusion import fuse_by_size
from fourminutes.plan import WIRE_BYTES, AlgorithmChoice, ReducePlan, Wire
from fourminutes.record import CollectiveTiming, Fusion, Tuning

# Another arrangement for a range of sizes has to gain this share of the time, or it is noise.
_GAIN_TO_CHANGE = 0.05
# Of bucket sizes about as good, a smaller one lets more of the communication begin early.
_AS_GOOD = 1.02
_LEAST_BUCKET_BYTES = 2**16

#: An algorithm and its ranks a group.
Way = tuple[str, int]


@dataclass(frozen=True)
class Curve:
    """Time of one arrangement by message size.

    Attributes:
        sizes_bytes: measured sizes, rising.
        seconds: the median at each.
    """

    sizes_bytes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, message_bytes: float) -> float:
        """Seconds for a message of so many bytes; for less than the smallest measured one, that one's."""
        beyond = message_bytes - self.sizes_bytes[-1]
        if beyond > 0:
            return self.seconds[-1] + beyond * self.last_slope
        return float(np.interp(message_bytes, self.sizes_bytes, self.seconds))

    @property
    def growth(self) -> float:
        """The largest message's time over the smallest one's."""
        return self.seconds[-1] / self.seconds[0]

    @property
    def last_slope(self) -> float:
        """Seconds a byte beyond the largest size."""
        if len(self.sizes_bytes) == 1:
            return self.seconds[0] / self.sizes_bytes[0]
        (smaller, larger), (before, after) = self.sizes_bytes[-2:], self.seconds[-2:]
        return max(0.0, after - before) / (larger - smaller)


def curves_of(timings: Sequence[CollectiveTiming]) -> dict[Way, Curve]:
    """Every arrangement's curve, from timings in one number format."""
    alike: dict[Way, dict[int, float]] = {}
    for timing in timings:
        alike.setdefault((timing.algorithm, timing.group_ranks), {})[timing.message_bytes] = timing.median_s
    return {
        way: Curve(tuple(sorted(times)), tuple(times[size] for size in sorted(times))) for way, times in alike.items()
    }


def choose(curves: Mapping[Way, Curve], own_group_ranks: int | None = None) -> tuple[AlgorithmChoice, ...]:
    """Which arrangement for which sizes, so that the sum of log times over the measured sizes is least.

    A change from one size to the next counts as much as a loss of 5 %, since medians of small messages scatter. Between
    two sizes the change is where the two curves cross. Groups of `own_group_ranks` are those that a run has anyway.
    """
    sizes = sorted({size for curve in curves.values() for size in curve.sizes_bytes})
    best = _least_sequence(curves, sizes)
    limits = [
        (way, _crossing(curves[way], curves[following], low, high))
        for (way, following), (low, high) in zip(pairwise(best), pairwise(sizes), strict=True)
        if way != following
    ]
    return tuple(_choice(way, limit, own_group_ranks) for way, limit in [*limits, (best[-1], None)])


def _least_sequence(curves: Mapping[Way, Curve], sizes: Sequence[int]) -> list[Way]:
    """The sequence of arrangements, one a size, of the least cost (Viterbi's algorithm)."""
    costs: dict[Way, float] = dict.fromkeys(curves, 0.0)
    came_from: list[dict[Way, Way]] = []
    for size in sizes:
        cheapest = min(costs, key=costs.__getitem__)
        source = {way: way if costs[way] <= costs[cheapest] + _GAIN_TO_CHANGE else cheapest for way in curves}
        costs = {
            way: costs[source[way]] + (way != source[way]) * _GAIN_TO_CHANGE + math.log(curves[way].at(size))
            for way in curves
        }
        came_from.append(source)
    best = [min(costs, key=costs.__getitem__)]
    for source in reversed(came_from[1:]):
        best.append(source[best[-1]])
    return best[::-1]


def _crossing(one: Curve, other: Curve, low_bytes: int, high_bytes: int) -> int:
    """The size between two neighbouring measured ones up to which `one` is the faster; both are straight there."""
    at_low, at_high = (one.at(size) - other.at(size) for size in (low_bytes, high_bytes))
    share = at_low / (at_low - at_high) if at_low < 0 < at_high else 0.0 if at_low >= 0 else 1.0
    return low_bytes + int(share * (high_bytes - 1 - low_bytes))


def _choice(way: Way, limit_bytes: int | None, own_group_ranks: int | None) -> AlgorithmChoice:
    algorithm, group_ranks = way
    is_named = algorithm != "ring" and group_ranks != own_group_ranks
    return AlgorithmChoice.model_validate(
        {
            "algorithm": algorithm,
            "group_ranks": group_ranks if is_named else None,
            "up_to_kib": None if limit_bytes is None else limit_bytes / 1024,
        }
    )


def predicted_s(curves: Mapping[Way, Curve], choices: Sequence[AlgorithmChoice], message_bytes: float) -> float:
    """Time of a message by the arrangement that is chosen for it, in seconds."""
    choice = next(choice for choice in choices if choice.holds(message_bytes))
    return next(
        curve.at(message_bytes)
        for (algorithm, group_ranks), curve in curves.items()
        if algorithm == choice.algorithm and choice.group_ranks in (None, group_ranks)
    )


@dataclass(frozen=True)
class Readiness:
    """When a model's gradients are there.

    Attributes:
        tensor_bytes: size of every trained parameter in fp32, in the model's order.
        ready_s: when each one's gradient is, in seconds from the begin of the backward pass.
    """

    tensor_bytes: tuple[int, ...]
    ready_s: tuple[float, ...]


def stretched(readiness: Readiness, backward_s: float, largest_bytes: int | None = None) -> Readiness:
    """The same pass over `backward_s` seconds; of its tensors those of at most `largest_bytes`, where that is given."""
    factor = backward_s / max(readiness.ready_s)
    kept: Sequence[tuple[int, float]] = [
        (size, factor * ready)
        for size, ready in zip(readiness.tensor_bytes, readiness.ready_s, strict=True)
        if largest_bytes is None or size <= largest_bytes
    ]
    return Readiness(tuple(size for size, _ in kept), tuple(ready for _, ready in kept))


def fusions(
    readiness: Readiness, curves: Mapping[Way, Curve], choices: Sequence[AlgorithmChoice], wire: Wire
) -> tuple[Fusion, ...]:
    """What bucket sizes from 64 KiB on, doubled each time, to the whole model would leave exposed."""
    whole = sum(readiness.tensor_bytes)
    thresholds = [_LEAST_BUCKET_BYTES]
    while thresholds[-1] < whole:
        thresholds.append(2 * thresholds[-1])
    return tuple(_fusion(readiness, curves, choices, wire, threshold) for threshold in thresholds)


def _fusion(
    readiness: Readiness,
    curves: Mapping[Way, Curve],
    choices: Sequence[AlgorithmChoice],
    wire: Wire,
    threshold_bytes: int,
) -> Fusion:
    """Buckets wait until their last tensor is ready, and for those before them; they are reduced one after another."""
    buckets = fuse_by_size(readiness.tensor_bytes, threshold_bytes)
    end_s = 0.0
    for ready_s, message_bytes in messages_of(readiness, buckets, wire):
        end_s = max(end_s, ready_s) + predicted_s(curves, choices, message_bytes)
    return Fusion(
        bucket_mib=threshold_bytes / 2**20,
        buckets=len(buckets),
        exposed_s=max(0.0, end_s - max(readiness.ready_s)),
    )


def messages_of(readiness: Readiness, buckets: Sequence[Sequence[int]], wire: Wire) -> Iterator[tuple[float, float]]:
    """Moment of readiness in seconds, and bytes on the wire, of every bucket; none goes before those before it."""
    ready_s = 0.0
    for bucket in buckets:
        ready_s = max(ready_s, *(readiness.ready_s[number] for number in bucket))
        yield ready_s, sum(readiness.tensor_bytes[number] for number in bucket) * WIRE_BYTES[wire] / 4


def best_fusion(candidates: Sequence[Fusion]) -> Fusion:
    """The smallest bucket size that leaves hardly more exposed than the best one."""
    least_s = min(candidate.exposed_s for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.exposed_s <= _AS_GOOD * least_s)


def tuned(settings: ReducePlan, tuning: Tuning) -> ReducePlan:
    """`settings` with what a tuning found in their place: arrangements by size and, for its model, the bucket size."""
    fusion = {} if tuning.bucket_mib is None else {"bucket_mib": tuning.bucket_mib}
    return settings.model_copy(update={"algorithm": "hybrid", "choices": tuning.choices, "tuning": None, **fusion})
