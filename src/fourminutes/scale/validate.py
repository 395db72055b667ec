"""Simulated steps against replayed ones, and against two models that anybody could guess. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fourminutes.comm.fusion import buckets_of
from fourminutes.comm.tuner import Readiness, messages_of, stretched
from fourminutes.plan.replay import SMALL_BYTES, ReplayCase
from fourminutes.record import ReplayedCase, ReplayRecord
from fourminutes.scale.measured import measured
from fourminutes.scale.network import total_s
from fourminutes.scale.step import Compute, simulate_step, way_of


@dataclass(frozen=True)
class Held:
    """One case: what was measured, and what was said of it; in seconds.

    Attributes:
        case: its name.
        settings: its settings.
        processes: number of ranks.
        measured_s: median of the replayed steps.
        low_s: lower quartile.
        high_s: upper quartile.
        n: steps measured.
        simulated_s: by the simulation.
        apart_s: computing, then all communication: no overlap.
        beside_s: the longer of the backward pass and all communication: full overlap.
    """

    case: str
    settings: ReplayCase
    processes: int
    measured_s: float
    low_s: float
    high_s: float
    n: int
    simulated_s: float
    apart_s: float
    beside_s: float

    @property
    def error_percent(self) -> float:
        """Of the simulation, in percent of what was measured; positive where it is too long."""
        return self._error_percent(self.simulated_s)

    @property
    def apart_percent(self) -> float:
        """The same without overlap."""
        return self._error_percent(self.apart_s)

    @property
    def beside_percent(self) -> float:
        """The same with full overlap."""
        return self._error_percent(self.beside_s)

    @property
    def spread_percent(self) -> float:
        """Range of the repeats, in percent of their median."""
        return 100 * (self.high_s - self.low_s) / self.measured_s

    def _error_percent(self, seconds: float) -> float:
        return 100 * (seconds / self.measured_s - 1)


def held_against(record: ReplayRecord) -> list[Held]:
    """Every case of the record, by the collectives that it holds; none of its steps was used to fit anything."""
    return [_held(record, name, case) for name, case in record.cases.items()]


def _held(record: ReplayRecord, name: str, case: ReplayedCase) -> Held:
    settings, processes = case.settings, len(record.placement.hosts)
    reduce = settings.reduce
    readiness = _readiness(record, settings)
    compute = Compute(0.0, record.settings.forward_s, readiness, record.settings.optimizer_s)
    costs = measured(record.timings, processes, reduce.wire, record.bucket_s)
    step = simulate_step(compute, reduce, costs, processes, record.group_ranks)
    messages = messages_of(readiness, buckets_of(readiness.tensor_bytes, reduce), reduce.wire)
    groups = reduce.group_ranks or record.group_ranks
    all_s = sum(total_s(way_of(reduce, costs, size, processes, groups)) for _, size in messages)
    low_s, median_s, high_s = np.quantile(case.step_s, (0.25, 0.5, 0.75)).tolist()
    return Held(
        case=name,
        settings=settings,
        processes=processes,
        measured_s=median_s,
        low_s=low_s,
        high_s=high_s,
        n=len(case.step_s),
        simulated_s=step.total_s,
        apart_s=compute.total_s + all_s,
        beside_s=compute.total_s - compute.backward_s + max(compute.backward_s, all_s),
    )


def _readiness(record: ReplayRecord, case: ReplayCase) -> Readiness:
    """As it was replayed: stretched, and of small tensors where only those were."""
    whole = Readiness(record.tensor_bytes, record.ready_s)
    return stretched(whole, case.backward_s, SMALL_BYTES if case.tensors == "small" else None)


@dataclass(frozen=True)
class Verdict:
    """How near a set of cases was come to: absolute errors in percent.

    Attributes:
        n: cases.
        median: of the simulation.
        worst: of the simulation.
        worst_allowed: 25 %, or twice the worst case's repeat spread where that is more.
        apart_median: of the model without overlap.
        beside_median: of the model with full overlap.
    """

    n: int
    median: float
    worst: float
    worst_allowed: float
    apart_median: float
    beside_median: float


def verdict(cases: Sequence[Held]) -> Verdict:
    """Over `cases`, of which there is at least one."""
    worst = max(cases, key=lambda case: abs(case.error_percent))
    return Verdict(
        n=len(cases),
        median=statistics.median(abs(case.error_percent) for case in cases),
        worst=abs(worst.error_percent),
        worst_allowed=max(25.0, 2 * worst.spread_percent),
        apart_median=statistics.median(abs(case.apart_percent) for case in cases),
        beside_median=statistics.median(abs(case.beside_percent) for case in cases),
    )


def rankings(cases: Sequence[Held]) -> Iterator[tuple[Held, Held, bool]]:
    """Pairs of cases alike but for their arrangement whose quartiles lie apart, and whether the simulation orders them.

    To be given cases of one record.
    """
    for number, one in enumerate(cases):
        for other in cases[number + 1 :]:
            if _alike(one, other) and (one.high_s < other.low_s or other.high_s < one.low_s):
                yield one, other, (one.simulated_s < other.simulated_s) == (one.measured_s < other.measured_s)


def _alike(one: Held, other: Held) -> bool:
    """Whether two cases differ in nothing but the arrangement."""
    without = {"algorithm": "ring", "choices": (), "group_ranks": None}
    a, b = (
        case.settings.model_copy(update={"reduce": case.settings.reduce.model_copy(update=without)})
        for case in (one, other)
    )
    return a == b
