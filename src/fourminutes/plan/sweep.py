"""The plan's experiments: sweeps, in which every arm gets the same number of trials, and the claims they decide."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fourminutes.plan.base import PlanModel
from fourminutes.plan.run import RunPlan


class TuningPlan(PlanModel):
    """How every sweep of the plan is tuned, and how its best value is then measured: the same for all of them."""

    factor: float = Field(2, gt=1, description="ratio of neighbouring values of the grid")
    points: int = Field(6, ge=3, description="values that every sweep tries first")
    budget: int = Field(
        9,
        ge=3,
        description="trials of every sweep in all: what the grid leaves extends it while the best value is at an edge, "
        "and then repeats the best values with further seeds",
    )
    tune_images: int = Field(
        ge=1, description="validation images, the first in the shards' order, that choose; the others are reported on"
    )
    seed: int = Field(1000, ge=0, description="first seed of the tuning trials")
    final_seeds: int = Field(10, ge=1, description="fresh runs with the chosen value, of seeds 0, 1, ... everywhere")

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        if self.budget < self.points:
            raise ValueError(f"budget {self.budget} does not pay for points {self.points}")
        return self


class SweepPlan(PlanModel):
    """One arm of an experiment: a run, of which one value is tuned or taken over from another sweep."""

    description: str = Field("", description="one sentence for the report")
    run: RunPlan = Field(description="the run, in a run's form, on top of the plan's defaults")
    key: str = Field("schedule.base_rate", description="what is varied, by its place in the run")
    start: float | None = Field(None, description="lowest value of the grid; null takes scaled_from")
    scaled_from: str | None = Field(
        None,
        description="sweep whose chosen value is taken, times the ratio of the batches: the linear scaling rule, "
        "without a trial of its own",
    )

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if (self.start is None) == (self.scaled_from is None):
            raise ValueError("a sweep has either start or scaled_from")
        if self.start is not None and self.start <= 0:
            raise ValueError(f"start {self.start} is not above 0; the grid is a geometric one")
        return self

    @model_validator(mode="after")
    def _sums_alike(self) -> Self:
        if self.run.reduce.algorithm == "auto":
            raise ValueError("run.reduce.algorithm auto: trials would sum differently; name a tuning by reduce.tuning")
        return self


class LossPlan(PlanModel):
    """A loss of accuracy from one sweep to another: where there is none to speak of, there is nothing to keep."""

    sweep: str = Field(description="sweep that lost accuracy")
    lost_to: str = Field(description="sweep without the loss")
    points: float = Field(3, gt=0, description="least loss, in points of top-1")


class ComparisonPlan(PlanModel):
    """Two sweeps held against one another, by paired seeds."""

    arm: str = Field(description="sweep that the claim is about")
    against: str = Field(description="sweep that it is compared with")
    only_if: LossPlan | None = Field(None, description="loss without which the comparison doesn't count; null: always")

    @property
    def sweeps(self) -> tuple[str, ...]:
        """Every sweep that has a part in it."""
        condition = (self.only_if.sweep, self.only_if.lost_to) if self.only_if else ()
        return tuple(dict.fromkeys((self.arm, self.against, *condition)))


class ClaimPlan(PlanModel):
    """A claim of the paper, with the margin fixed before anything is run."""

    statement: str = Field(description="the claim in one sentence")
    kind: Literal["gains", "equals"] = Field(
        description="gains: the arm is better by more than the margin; equals: it is within the margin, either way"
    )
    margin_points: float = Field(ge=0, description="margin, in points of top-1")
    comparisons: tuple[ComparisonPlan, ...] = Field(min_length=1, description="what decides it; all of them must hold")

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        if self.kind == "equals" and self.margin_points == 0:
            raise ValueError("margin_points 0: nothing is ever shown to be exactly equal; give a margin")
        return self
