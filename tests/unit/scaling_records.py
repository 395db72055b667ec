"""Hand-made records of measured series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.epochs import step_times
from sweep_records import PROVENANCE

from fourminutes.plan import Plan, series_settings
from fourminutes.record import Placement, Repeat, ScalingRecord, StepTimes, write_record

#: Parts of a step of 1 s.
SPLIT = {
    "input_wait_s": 0.05,
    "forward_s": 0.25,
    "backward_s": 0.5,
    "exposed_reduce_s": 0.125,
    "optimizer_s": 0.055,
    "other_s": 0.02,
}
#: Seconds of the repeats' steps, but for a factor.
SPREAD = (1.0, 0.9, 1.1, 1.05, 0.95, 0.8, 1.2)


def scaling_record(
    plan: Plan, series: str, processes: int, *, step_s: float = 1.0, per_node: int = 100, **changes: Any
) -> ScalingRecord:
    """The series on so many processes, `per_node` on a host; the median of its steps takes `step_s`."""
    hosts = tuple(f"node{rank // per_node}" for rank in range(processes))
    values: dict[str, Any] = {
        "plan": plan.name,
        "series": series,
        "measured": plan.scaling[series],
        "settings": series_settings(plan, series, processes),
        "dataset_hash": "ab" * 32 if plan.scaling[series].input == "real" else None,
        "class_count": 10,
        "parameters": 1_600_000,
        "placement": Placement(launcher="slurm", hosts=hosts, device="NVIDIA H200", backend="nccl"),
        "provenance": PROVENANCE.model_copy(update={"command": f"fourminutes scale measure --series {series}"}),
        "skipped_steps": 0,
        "repeats": repeats([step_s * factor for factor in SPREAD]),
    }
    return ScalingRecord.model_validate(values | changes)


def repeats(steps_s: Sequence[float]) -> tuple[Repeat, ...]:
    """Two steps each, of one and three parts of the time of both; a second rank waits half as long as the first."""
    return tuple(
        Repeat(
            steps_s=(0.5 * step_s, 1.5 * step_s),
            times=_times(2 * step_s),
            waited_s=(2 * step_s * SPLIT["exposed_reduce_s"], step_s * SPLIT["exposed_reduce_s"]),
        )
        for step_s in steps_s
    )


def _times(seconds: float) -> StepTimes:
    return step_times(**{part: share * seconds for part, share in SPLIT.items()})


def record_series(plan: Plan) -> None:
    """Write the plan's series, on two processes a host, each 5 % slower than on half of the processes."""
    for name, series in plan.scaling.items():
        for size in series.world_sizes:
            slower = 1.05 ** (size.bit_length() - 1)
            write_record(plan.scaling_record(name, size), scaling_record(plan, name, size, step_s=slower, per_node=2))
