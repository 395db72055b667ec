"""What a replay measures: steps of a network whose computing is waited for, with the real reduction beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from fourminutes.errors import UserError
from fourminutes.plan.base import PlanModel
from fourminutes.plan.reading import read_mapping
from fourminutes.plan.run import ModelPlan, ReducePlan
from fourminutes.plan.words import dotted, first_problem

#: The largest gradient, in fp32, of those that latency decides about.
SMALL_BYTES = 64 * 2**10


class ReplayCase(PlanModel):
    """One arrangement of the reduction beside one length of the computing."""

    backward_s: float = Field(
        gt=0, description="length of the backward pass, to which the moments of readiness are stretched, in seconds"
    )
    tensors: Literal["all", "small"] = Field(
        "all", description="all: every gradient; small: those of at most 64 KiB in fp32, as latency decides about"
    )
    reduce: ReducePlan = Field(default_factory=ReducePlan, description="averaging; its buckets are exact")


class ReplayPlan(PlanModel):
    """Steps to measure, and the collectives that predict them."""

    model: ModelPlan = Field(default_factory=ModelPlan, description="network whose gradients are reduced")
    classes: int = Field(1000, ge=2, description="classes of its last layer")
    ready_s: tuple[float, ...] = Field(
        (),
        description="when each gradient is ready, in the network's order, from the begin of a measured backward pass, "
        "in seconds; empty measures them here",
    )
    images: int = Field(4, ge=1, description="images of the passes that measure them")
    forward_s: float = Field(0.1, ge=0, description="length of the forward pass, in seconds")
    optimizer_s: float = Field(0.01, ge=0, description="length of the update, in seconds")
    repeats: int = Field(5, ge=3, description="timed steps of each case")
    warm_up: int = Field(1, ge=1, description="steps of each case before them that are not timed")
    cases: dict[str, ReplayCase] = Field(min_length=1, description="cases by name")

    @field_validator("cases")
    @classmethod
    def _are_set(cls, cases: dict[str, ReplayCase]) -> dict[str, ReplayCase]:
        for name, case in cases.items():
            if case.reduce.algorithm == "auto" or case.reduce.tuning is not None:
                raise ValueError(f"{name}: a replay needs the arrangements themselves; name them as choices")
        return cases

    @model_validator(mode="after")
    def _has_one_moment_each(self) -> Self:
        if any(moment < 0 for moment in self.ready_s):
            raise ValueError("ready_s: moments are not negative")
        return self


def read_replay(path: Path) -> ReplayPlan:
    """The cases that the YAML file at `path` holds.

    Raises:
        UserError: the file is missing, is not YAML, or holds an unknown key or a wrong value.
    """
    raw = read_mapping(path, "a file of cases to replay")
    try:
        return ReplayPlan.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        problem = first_problem(error, ReplayPlan)
        raise UserError(f"{path}: {dotted(problem.location, 'cases')}: {problem.words}") from error
