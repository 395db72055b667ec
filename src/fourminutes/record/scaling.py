"""The record of a run's step, timed on one number of processes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan import RunPlan, ScalingPlan
from fourminutes.record.base import Record
from fourminutes.record.provenance import Provenance
from fourminutes.record.run import Placement, Reduction, StepTimes


class Repeat(Record):
    """Some steps in a row on rank 0, which waits for the others in every one of them."""

    steps_s: tuple[float, ...] = Field(min_length=1, description="length of each step; together `times.total_s`")
    times: StepTimes = Field(description="where the time of all these steps went")
    waited_s: tuple[float, ...] = Field(
        description="waiting for gradients after the backward pass, by rank; of that the least is the reduction's own, "
        "and the rest is for the slowest rank"
    )

    @property
    def step_s(self) -> float:
        """Seconds a step, a mean: what one waits for its input now and then belongs to all."""
        return self.times.total_s / len(self.steps_s)


class ScalingRecord(Record):
    """The step of a series on one number of processes."""

    kind: Literal["scaling"] = "scaling"
    plan: str
    series: str
    measured: ScalingPlan = Field(description="how steps were timed")
    settings: RunPlan = Field(description="every resolved value of what was timed, on this number of processes")
    dataset_hash: str | None = Field(description="null where the input is synthetic")
    class_count: int
    parameters: int = Field(description="number of trained parameters")
    placement: Placement
    provenance: Provenance
    reduction: Reduction | None = Field(None, description="null for one process")
    skipped_steps: int = Field(description="timed steps without an update, for an overflow; they are shorter")
    repeats: tuple[Repeat, ...] = Field(min_length=1)

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.settings.processes

    @property
    def nodes(self) -> int:
        """Number of hosts that they ran on."""
        return len(set(self.placement.hosts))

    @property
    def images_per_s(self) -> tuple[float, ...]:
        """Images a second over all processes, of each repeat."""
        return tuple(self.settings.batch.global_batch / repeat.step_s for repeat in self.repeats)

    @property
    def total_s(self) -> float:
        """Time of all timed steps, in seconds."""
        return sum(repeat.times.total_s for repeat in self.repeats)

    @property
    def least_wait_percent(self) -> float:
        """What the rank that waited least for gradients, in each repeat, waited; share of the time, in percent."""
        return 100 * sum(min(repeat.waited_s) for repeat in self.repeats) / self.total_s

    def percent(self, part: str) -> float:
        """Share of `part`, a field of `StepTimes`, in the time of all timed steps on rank 0, in percent."""
        return 100 * sum(float(getattr(repeat.times, part)) for repeat in self.repeats) / self.total_s
