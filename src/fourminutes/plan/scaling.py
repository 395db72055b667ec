"""The plan's measured series: one run's step, timed on one number of processes after another."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from fourminutes.plan.base import PlanModel, content_hash
from fourminutes.plan.run import CheckpointPlan, EvaluationPlan, RunPlan, SchedulePlan
from fourminutes.plan.words import dotted, first_problem

# So low that the weights stay about where they are, and no loss runs off while steps are timed.
_RATE = 1e-4


class ScalingPlan(PlanModel):
    """A run's training step, timed at several numbers of processes."""

    description: str = Field("", description="one sentence for the report")
    run: str = Field(description="run of the plan whose network, precision, optimizer, loader and reduction are timed")
    mode: Literal["weak", "strong"] = Field(
        "weak",
        description="weak: every process keeps the run's micro-batches, so that the global batch grows; strong: the "
        "global batch is kept, and the processes share it",
    )
    world_sizes: tuple[int, ...] = Field(min_length=1, description="numbers of processes, rising; each is a job")
    processes_per_node: int | None = Field(
        None, ge=1, description="processes on a full node; fewer share one; null puts all of them on one"
    )
    input: Literal["real", "synthetic"] = Field(
        "real",
        description="real: the plan's shards, through the loader; synthetic: one batch of noise that stays on the "
        "device, which needs no shards",
    )
    warmup_steps: int = Field(10, ge=1, description="steps before the first that is timed")
    steps: int = Field(10, ge=1, description="timed steps of each repeat")
    repeats: int = Field(
        11,
        ge=7,
        description="times that so many steps are timed; fewer than 7 give medians no 95 % interval, from 11 on one "
        "repeat that was disturbed does not widen it",
    )

    @property
    def total_steps(self) -> int:
        """Steps of one measurement, those that are not timed among them."""
        return self.warmup_steps + self.steps * self.repeats

    @property
    def key(self) -> str:
        """Identifies how steps are timed, at whatever number of processes."""
        return content_hash(self, without=frozenset({"description", "world_sizes"}))

    @field_validator("world_sizes")
    @classmethod
    def _rise(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if sizes[0] < 1 or any(low >= high for low, high in pairwise(sizes)):
            raise ValueError(f"{list(sizes)} must rise, from 1 process or more")
        return sizes

    def at(self, processes: int, run: RunPlan) -> RunPlan:
        """The settings of `run` on so many processes.

        With b images a process and step in the run and P processes, the global batch is P b (weak), or the run's own
        (strong), whose share of a process is taken in forward passes as large as the run's, or smaller where the share
        is. The rate is constant and next to nothing, since none of a run's own would suit every batch.

        Raises:
            ValueError: the processes don't fill nodes, can't share the batch, or the run doesn't work on so many.
        """
        settings = run.model_dump() | {
            "processes": processes,
            "processes_per_node": self._per_node(processes),
            "batch": run.batch.model_dump() | self._batch(processes, run),
            "epochs": 1,
            "schedule": SchedulePlan(base_rate=_RATE, decay="constant").model_dump(),
            "reduce": run.reduce.model_dump() | {"trace_step": None},
            "checkpoint": CheckpointPlan().model_dump(),
            "evaluation": EvaluationPlan().model_dump(),
        }
        try:
            return RunPlan.model_validate(settings)
        except ValidationError as error:
            problem = first_problem(error, RunPlan)
            raise ValueError(f"{dotted(problem.location, 'run')}: {problem.words}") from error

    def _per_node(self, processes: int) -> int | None:
        """Fewer than fill a node share one."""
        full = self.processes_per_node
        if full is None or processes <= full:
            return None
        if processes % full:
            raise ValueError(f"they fill no whole number of nodes of {full} (processes_per_node)")
        return full

    def _batch(self, processes: int, run: RunPlan) -> dict[str, int]:
        batch = run.batch
        if self.mode == "weak":
            return {"global_batch": batch.global_batch // run.processes * processes}
        share, rest = divmod(batch.global_batch, processes)
        if rest:
            raise ValueError(f"they cannot share batch.global_batch {batch.global_batch}, which strong scaling keeps")
        if share > batch.per_device and share % batch.per_device:
            raise ValueError(f"a share of {share} images is no multiple of batch.per_device {batch.per_device}")
        return {"per_device": min(share, batch.per_device)}


def speed_hash(settings: RunPlan) -> str:
    """Identifies what may change how long a step takes: all settings but words, the seed, and how long others wait."""
    same = {"description": "", "recipe": None, "seed": 0}
    return content_hash(settings.model_copy(update=same), without=frozenset({"device", "lost_after_s"}))
