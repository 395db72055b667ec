"""A measured series predicted from its own measurement on one process, to be held against it. No torch."""

from __future__ import annotations

import statistics

from fourminutes.plan import ScalePlan
from fourminutes.record import CommRecord, Repeat, ScalingRecord
from fourminutes.scale.fitted import costs_of
from fourminutes.scale.simulate import OWN_PARTS, compute_from, reduce_from
from fourminutes.scale.step import simulate_step


def predicted_step_s(record: ScalingRecord, alone: ScalingRecord, comm: CommRecord) -> float:
    """Seconds a step of `record`, simulated from the same work on one process and from measured collectives.

    Nobody is late, and computing is as fast as alone: on cores that processes share it is not, which is what is to be
    seen.

    Args:
        record: a weak series on several processes.
        alone: the series on one.
        comm: collectives on the same machines.

    Raises:
        UserError: `comm` has no fit for the arrangement.
    """
    buckets = record.reduction.buckets if record.reduction else None
    times = {
        part: statistics.median(_seconds(repeat, part) for repeat in alone.repeats) for part in (*OWN_PARTS, _OTHER)
    }
    compute = compute_from(times, record.settings, record.class_count, buckets)
    reduce = reduce_from(record.settings.reduce, record.reduction, record.placement)
    costs = costs_of(comm, reduce.wire, ScalePlan())
    step = simulate_step(compute, reduce, costs, record.processes, reduce.group_ranks or 1)
    return step.total_s + times[_OTHER]


_OTHER = "other_s"


def _seconds(repeat: Repeat, part: str) -> float:
    """Of a part, a step."""
    return float(getattr(repeat.times, part)) / len(repeat.steps_s)
