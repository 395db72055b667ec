"""What a report stands on: the records that a plan has or names, each with the file it came from."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from fourminutes.plan import Plan, RunPlan
from fourminutes.record import (
    CommRecord,
    Manifest,
    ProfileRecord,
    Record,
    ReplayRecord,
    RunRecord,
    ScaleRecord,
    read_record,
)
from fourminutes.report import words
from fourminutes.report.arms import Arm, read_arms
from fourminutes.report.claims import Judgement, judge
from fourminutes.report.scalings import Scaling, read_scalings

AnyRecord = TypeVar("AnyRecord", bound=Record)

ILSVRC2012_CLASSES = 1000
_PAPER_CROPS_PX = (224, 227)


@dataclass(frozen=True)
class Sourced(Generic[AnyRecord]):
    """A record and its file."""

    path: Path
    record: AnyRecord

    @property
    def anchor(self) -> str:
        """The place on the page where the record's provenance stands."""
        return f"record-{self.path.with_suffix('').as_posix().replace('/', '-')}"


@dataclass(frozen=True)
class Run:
    """A recorded run as the report shows it."""

    label: str
    path: Path
    record: RunRecord
    outdated: bool
    repeats: int

    @property
    def images_per_s(self) -> float:
        """Training images over training time of the whole run, evaluation and checkpoints left out."""
        seconds = sum(epoch.train_images / epoch.images_per_s for epoch in self.record.epochs)
        return sum(epoch.train_images for epoch in self.record.epochs) / seconds

    @property
    def anchor(self) -> str:
        """The place on the page where the run's provenance stands."""
        return f"record-{self.record.plan}-{self.record.run}"

    @property
    def model(self) -> str | None:
        """The network as the published tables call it; None where it is another, or another width."""
        return paper_model(self.record.settings)

    @property
    def skipped_steps(self) -> int:
        """Batches whose step was skipped for an overflow."""
        return sum(epoch.skipped_steps for epoch in self.record.epochs)

    @property
    def on_imagenet(self) -> bool:
        """Whether it trains the whole network on ImageNet's classes and crop, as a published accuracy supposes."""
        model = self.record.settings.model
        classes = self.record.class_count
        return classes == ILSVRC2012_CLASSES and model.image_px in _PAPER_CROPS_PX and model.width == 1

    def seconds(self, part: str) -> float:
        """Time that went to `part`, a field of `StepTimes`, over all epochs."""
        return sum(float(getattr(epoch.times, part)) for epoch in self.record.epochs)

    def percent(self, part: str) -> float:
        """Share of `part` in the run's time, in percent."""
        return 100 * self.seconds(part) / self.seconds("total_s")


@dataclass(frozen=True)
class Wanted:
    """A run that the plan has or expects, and that has no record yet; its settings where the plan itself has them."""

    label: str
    plan: str
    run: str
    settings: RunPlan | None

    @property
    def how(self) -> str:
        """The command that makes its record."""
        return f"snakemake results/{self.plan}/runs/{self.run}.json --config plan={self.plan}"


@dataclass(frozen=True)
class Evidence:
    """All records that a report draws from.

    `slots` are the runs that the plan has or expects, recorded or not, in the plan's order, then all others recorded:
    a record that goes leaves its slot empty and the others where they are.
    """

    plan: Plan
    slots: tuple[Run | Wanted, ...]
    comms: tuple[Sourced[CommRecord], ...]
    replays: tuple[Sourced[ReplayRecord], ...]
    scale: Sourced[ScaleRecord] | None
    manifest: Sourced[Manifest] | None
    arms: tuple[Arm, ...]
    scalings: tuple[Scaling, ...] = ()
    profiles: tuple[Sourced[ProfileRecord], ...] = ()

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The recorded runs."""
        return tuple(slot for slot in self.slots if isinstance(slot, Run))

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The runs without a record."""
        return tuple(slot for slot in self.slots if isinstance(slot, Wanted))

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the runs without a record."""
        return tuple(slot.label for slot in self.wanted)

    @property
    def missing_sweeps(self) -> tuple[str, ...]:
        """The plan's sweeps that have no record."""
        recorded = {arm.name for arm in self.arms}
        return tuple(name for name in self.plan.sweeps if name not in recorded)

    @cached_property
    def judgements(self) -> tuple[Judgement, ...]:
        """The plan's claims, judged by the recorded sweeps."""
        return judge(self.plan, self.arms)

    @property
    def best(self) -> Run | None:
        """The run with the highest final top-1 accuracy."""
        return max(self.runs, key=lambda run: run.record.final.top1_percent, default=None)


def gather(plan: Plan) -> Evidence:
    """Read every record that `plan` has or names; one that is not there is left out.

    Raises:
        UserError: a record is damaged or of another kind.
    """
    own = [plan.run_record(name) for name in plan.runs]
    return Evidence(
        plan=plan,
        slots=_slots(plan, _existing([*own, *_matching(plan.report.records)])),
        comms=_all([plan.comm_record, *_matching(plan.report.comm_records)], CommRecord),
        replays=_all(_matching(plan.report.replays), ReplayRecord),
        scale=_optional(Path(plan.report.scale_record or plan.scale_record), ScaleRecord),
        manifest=_optional(plan.manifest, Manifest),
        arms=read_arms(plan),
        scalings=read_scalings(plan, _existing([*plan.scaling_records, *_matching(plan.report.scaling_records)])),
        profiles=tuple(sorted(_all(_matching(plan.report.profiles), ProfileRecord), key=_by_model_and_size)),
    )


def _all(paths: list[Path], kind: type[AnyRecord]) -> tuple[Sourced[AnyRecord], ...]:
    return tuple(Sourced(path, read_record(path, kind)) for path in _existing(paths))


def _by_model_and_size(one: Sourced[ProfileRecord]) -> tuple[str, str, int, str]:
    return one.record.model.name, one.record.device, one.record.images, one.record.precision


def _optional(path: Path, kind: type[AnyRecord]) -> Sourced[AnyRecord] | None:
    return Sourced(path, read_record(path, kind)) if path.is_file() else None


def _matching(patterns: tuple[str, ...]) -> list[Path]:
    # Not Path.glob, which takes no absolute pattern.
    return sorted({Path(name) for pattern in patterns for name in glob.glob(pattern, recursive=True)})  # noqa: PTH207


def _existing(paths: list[Path]) -> list[Path]:
    """The files among `paths`, each once however it is spelled."""
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_file():
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _slots(plan: Plan, paths: list[Path]) -> tuple[Run | Wanted, ...]:
    records = [read_record(path, RunRecord) for path in paths]
    expected = [*((plan.name, run) for run in plan.runs), *_expected(plan)]
    several_plans = len({name for name, _ in expected} | {record.plan for record in records}) > 1
    recipes = [recipe(record) for record in records]
    recorded = {
        (record.plan, record.run): Run(
            label=_label(record.plan, record.run, several_plans),
            path=path,
            record=record,
            outdated=_is_outdated(plan, path, record),
            repeats=recipes.count(own),
        )
        for path, record, own in zip(paths, records, recipes, strict=True)
    }
    return tuple(
        recorded.get((name, run)) or Wanted(_label(name, run, several_plans), name, run, _planned(plan, name, run))
        for name, run in dict.fromkeys([*expected, *recorded])
    )


def _expected(plan: Plan) -> list[tuple[str, str]]:
    return [(name, run) for name, run in (one.split("/") for one in plan.report.expects)]


def _label(plan: str, run: str, several_plans: bool) -> str:
    return f"{plan}/{run}" if several_plans else run


def _planned(plan: Plan, name: str, run: str) -> RunPlan | None:
    return plan.runs.get(run) if name == plan.name else None


def recipe(record: RunRecord) -> tuple[str, RunPlan]:
    """What repeats of a run have in common: the data and all settings but the seed."""
    return record.dataset_hash, but_seed(record.settings)


def but_seed(settings: RunPlan) -> RunPlan:
    """The settings without the seed, and without what is only said of them."""
    return settings.model_copy(update={"seed": 0, "description": ""})


def paper_model(settings: RunPlan) -> str | None:
    """One of the paper's networks by its published name; None for another network, or another width of one."""
    return words.PAPER_MODELS.get(settings.model.name) if settings.model.width == 1 else None


def _is_outdated(plan: Plan, path: Path, record: RunRecord) -> bool:
    """Whether the plan asks for something else by now than the record shows."""
    if record.run not in plan.runs or path != plan.run_record(record.run):
        return False
    now = plan.runs[record.run].model_copy(update={"description": record.settings.description})
    return now != record.settings
