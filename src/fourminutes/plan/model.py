"""The plan: everything a user decides, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fourminutes.plan.base import PlanModel
from fourminutes.plan.data import DataPlan
from fourminutes.plan.measure import CommBenchPlan, ReportPlan, ScalePlan
from fourminutes.plan.run import RunPlan
from fourminutes.plan.scaling import ScalingPlan
from fourminutes.plan.sweep import ClaimPlan, SweepPlan, TuningPlan
from fourminutes.plan.words import did_you_mean

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class MlperfPlan(PlanModel):
    """What an MLPerf log says about its submitter; see the submission rules of MLPerf training."""

    organization: str = Field(min_length=1, description="who submits")
    platform: str = Field(min_length=1, description="name of the system")
    division: Literal["closed", "open"] = Field("open", description="division of the submission")
    status: Literal["onprem", "cloud", "research", "preview"] = Field("onprem", description="kind of the system")


class Plan(PlanModel):
    """A plan that trains has `data` and `runs`; one that only draws has neither and names records in `report`."""

    name: Name = Field(description="short name; results go to results/<name>")
    description: str = Field("", description="one sentence for the report")
    data: DataPlan | None = Field(None, description="the data set; null for a plan that only draws")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="values for all runs, in a run's form; a run's own values win"
    )
    runs: dict[Name, RunPlan] = Field(default_factory=dict, description="training runs by name")
    tuning: TuningPlan | None = Field(None, description="how sweeps are tuned; null where there are none")
    sweeps: dict[Name, SweepPlan] = Field(default_factory=dict, description="arms of experiments by name")
    claims: dict[Name, ClaimPlan] = Field(default_factory=dict, description="what the sweeps decide, by name")
    mlperf: MlperfPlan | None = Field(None, description="who writes MLPerf logs, one a run; null writes none")
    comm: CommBenchPlan | None = Field(None, description="measurement of the collectives; null for none")
    scaling: dict[Name, ScalingPlan] = Field(
        default_factory=dict, description="steps timed at several numbers of processes, by the name of the series"
    )
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

    def scaling_record(self, series: str, processes: int) -> Path:
        """The record of the series of that name on so many processes."""
        return self.results / "scaling" / f"{series}-{processes}.json"

    @property
    def scaling_records(self) -> tuple[Path, ...]:
        """Those of all series, on all of their numbers of processes."""
        return tuple(
            self.scaling_record(name, size) for name, series in self.scaling.items() for size in series.world_sizes
        )

    def sweep_record(self, sweep: str) -> Path:
        """The ledger of the sweep of that name, once every trial is made."""
        return self.results / "sweeps" / f"{sweep}.json"

    def sweep_ledger(self, sweep: str) -> Path:
        """The same ledger while it grows."""
        return self.work / self.name / "sweeps" / f"{sweep}.json"

    def run_lease(self, run: str) -> Path:
        """Who is training the run, while somebody is."""
        return self.work / self.name / f"{run}.lease.json"

    def sweep_lease(self, sweep: str) -> Path:
        """Who is at the sweep, while somebody is."""
        return self.work / self.name / "sweeps" / f"{sweep}.lease.json"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.runs or self.sweeps) and self.data is None:
            raise ValueError("runs and sweeps need a data block to train on")
        if self.sweeps and self.tuning is None:
            raise ValueError("sweeps need a tuning block")
        self._check_names()
        self._check_series()
        if self.scale and not (self.runs and self.comm):
            raise ValueError("scale needs runs and a comm block to predict from")
        return self

    def _check_names(self) -> None:
        """Refuse sweeps and claims that name a sweep which isn't there, or one that takes its value over itself."""
        tuned = [name for name, sweep in self.sweeps.items() if sweep.start is not None]
        for name, sweep in self.sweeps.items():
            if sweep.scaled_from is not None and sweep.scaled_from not in tuned:
                raise ValueError(f"sweeps.{name}.scaled_from: {sweep.scaled_from!r} is no tuned sweep of this plan")
        for name, claim in self.claims.items():
            for comparison in claim.comparisons:
                for compared in comparison.sweeps:
                    if compared not in self.sweeps:
                        raise ValueError(f"claims.{name}: {compared!r} is no sweep of this plan")

    def _check_series(self) -> None:
        """Refuse series of a run which isn't there, or of numbers of processes that it cannot have."""
        for name, series in self.scaling.items():
            if series.run not in self.runs:
                known = did_you_mean(series.run, self.runs, f"there are: {', '.join(self.runs) or 'none'}")
                raise ValueError(f"scaling.{name}.run: {series.run!r} is no run of this plan{known}")
            for processes in series.world_sizes:
                try:
                    series.at(processes, self.runs[series.run])
                except ValueError as error:
                    raise ValueError(f"scaling.{name}.world_sizes: {processes} processes: {error}") from error
