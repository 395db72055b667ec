"""The plan: everything a user decides, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from fourminutes.plan.base import PlanModel
from fourminutes.plan.data import DataPlan
from fourminutes.plan.measure import CommBenchPlan, ReportPlan, ScalePlan
from fourminutes.plan.run import RunPlan

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Plan(PlanModel):
    """A plan that trains has `data` and `runs`; one that only draws has neither and names records in `report`."""

    name: Name = Field(description="short name; results go to results/<name>")
    description: str = Field("", description="one sentence for the report")
    data: DataPlan | None = Field(None, description="the data set; null for a plan that only draws")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="values for all runs, in a run's form; a run's own values win"
    )
    runs: dict[Name, RunPlan] = Field(default_factory=dict, description="training runs by name")
    comm: CommBenchPlan | None = Field(None, description="measurement of the collectives; null for none")
    scale: ScalePlan | None = Field(None, description="prediction of other sizes; null for none")
    report: ReportPlan = Field(default_factory=ReportPlan, description="tables, figures and page")
    work: Path = Field(
        Path("work"), description="folder for checkpoints; may be on scratch; relative to the clone's root"
    )

    @property
    def results(self) -> Path:
        """Where the plan's small, readable results go."""
        return Path("results") / self.name

    @property
    def manifest(self) -> Path:
        """The data set's manifest."""
        return self.results / "manifest.json"

    @property
    def comm_record(self) -> Path:
        """The record of the measured collectives."""
        return self.results / "comm.json"

    @property
    def scale_record(self) -> Path:
        """The record of the predictions."""
        return self.results / "scale.json"

    def run_record(self, run: str) -> Path:
        """The record that ends the run of that name."""
        return self.results / "runs" / f"{run}.json"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.runs and self.data is None:
            raise ValueError("runs need a data block to train on")
        if self.scale and not (self.runs and self.comm):
            raise ValueError("scale needs runs and a comm block to predict from")
        return self
