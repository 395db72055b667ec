"""How long the plan's training will take, from the records of what was trained before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fourminutes.doctor.finding import Finding, Findings, duration, some
from fourminutes.doctor.needs import images_of
from fourminutes.doctor.profile import PROFILE, Profile
from fourminutes.errors import UserError
from fourminutes.plan import ModelPlan, Plan, Precision, RunPlan
from fourminutes.record import Manifest, Placement, Provenance, Record, RunRecord, SweepRecord, read_record

_Kind = TypeVar("_Kind", bound=Record)


class _Placed(Protocol):
    """What run and sweep records have in common."""

    @property
    def placement(self) -> Placement: ...

    @property
    def provenance(self) -> Provenance: ...


@dataclass(frozen=True)
class Pace:
    """How fast something was trained.

    Attributes:
        model: the network.
        precision: number formats.
        image_s: seconds that one process takes for a training image, evaluation and all else included.
        device: what it was, in words.
        source: file of the record.
    """

    model: ModelPlan
    precision: Precision
    image_s: float
    device: str
    source: Path


@dataclass(frozen=True)
class Work:
    """Something that the plan trains.

    Attributes:
        name: of the run or sweep.
        rule: Snakemake's.
        run: its settings.
        trainings: how many times it is trained.
        recorded_s: what it took, where it is done already; else None.
    """

    name: str
    rule: str
    run: RunPlan
    trainings: int = 1
    recorded_s: float | None = None


def look_at_duration(plan: Plan, results: Path, profile: Profile, here: str) -> list[Finding]:
    """How long each run and sweep of the plan took or will take, and what that comes from.

    Args:
        plan: what is to be trained.
        results: folder with the records of all plans, ``results``.
        profile: whose time limits the estimates are held against.
        here: the device here, as records name them (`device_of`).
    """
    findings = Findings("duration")
    works = works_of(plan)
    paces = paces_in(results)
    images = _train_images(plan)
    unknown, total_s = [], 0.0
    if done := [work for work in works if work.recorded_s is not None]:
        took = duration(sum(work.recorded_s or 0 for work in done) / 60)
        findings.add("ok", "finished", f"{some([work.name for work in done])}: took {took}, by their records")
    for work in works:
        if work.recorded_s is not None:
            continue
        pace = best_pace(work.run, paces, here)
        if pace is None or images is None:
            unknown.append(work.name)
            continue
        one_s = pace.image_s * images * work.run.epochs / work.run.processes
        total_s += one_s * work.trainings
        _add_estimate(findings, work, one_s, pace, profile)
    if total_s:
        findings.add("ok", "in all", f"about {duration(total_s / 60)} of training, if one follows the other")
    if unknown:
        what = f"{some(unknown)}: not known before a first run; no record has their network and precision"
        findings.add("note", "to be seen", what)
    return findings.all


def device_of(placed: _Placed) -> str:
    """What a record's processes computed on, in words."""
    return placed.provenance.cpu if placed.placement.device == "cpu" else placed.placement.device


def records_in(folder: Path, pattern: str, kind: type[_Kind]) -> dict[Path, _Kind]:
    """The readable records of that kind, by their files; others are passed over."""
    records = {}
    for path in sorted(folder.glob(pattern)):
        try:
            records[path] = read_record(path, kind)
        except UserError:
            continue
    return records


def works_of(plan: Plan) -> list[Work]:
    """Every run and sweep, with what it took where there is a record of the same settings."""
    works = []
    for name, run in plan.runs.items():
        record = _read(plan.run_record(name), RunRecord)
        is_done = record is not None and record.settings.recipe_hash == run.recipe_hash
        works.append(Work(name, "train_run", run, recorded_s=record.wall_s if record and is_done else None))
    for name, sweep in plan.sweeps.items():
        tuned = plan.tuning.budget if plan.tuning and sweep.start is not None else 0
        trainings = tuned + (plan.tuning.final_seeds if plan.tuning else 0)
        ledger = _read(plan.sweep_record(name), SweepRecord)
        took_s = sum(trial.wall_s for trial in ledger.trials) if ledger else None
        works.append(Work(name, "sweep", sweep.run, trainings, took_s))
    return works


def paces_in(results: Path) -> list[Pace]:
    """How fast the runs and sweeps in the folder ``results`` were."""
    paces = []
    for path, record in records_in(results, "*/runs/*.json", RunRecord).items():
        images = sum(epoch.train_images for epoch in record.epochs)
        spent_s = sum(epoch.times.total_s for epoch in record.epochs) * record.settings.processes
        if images:
            paces.append(_pace(record.settings, spent_s / images, record, path))
    for path, ledger in records_in(results, "*/sweeps/*.json", SweepRecord).items():
        whole = [trial.wall_s for trial in ledger.trials if not trial.diverged]
        images = len(whole) * ledger.settings.epochs * ledger.steps_per_epoch * ledger.settings.batch.global_batch
        if images:
            paces.append(_pace(ledger.settings, sum(whole) * ledger.settings.processes / images, ledger, path))
    return paces


def best_pace(run: RunPlan, paces: Sequence[Pace], here: str) -> Pace | None:
    """The pace of the same network and precision, best on the same device as here; None where there is none."""
    alike = [pace for pace in paces if (pace.model, pace.precision) == (run.model, run.precision)]
    return min(alike, key=lambda pace: pace.device != here, default=None)


def _pace(settings: RunPlan, image_s: float, placed: _Placed, path: Path) -> Pace:
    return Pace(settings.model, settings.precision, image_s, device_of(placed), path)


def _add_estimate(findings: Findings, work: Work, one_s: float, pace: Pace, profile: Profile) -> None:
    times = f"{work.trainings} x " if work.trainings > 1 else ""
    what = f"about {times}{duration(one_s / 60)} on {work.run.processes} x {pace.device}, scaled from {pace.source}"
    limit_min = profile.number(work.rule, "runtime")
    if limit_min is not None and one_s * work.trainings / 60 > limit_min:
        to_do = f"for Slurm, raise runtime of {work.rule} in {PROFILE}"
        findings.add("note", work.name, f"{what}; more than the {duration(limit_min)} of its job", to_do)
    else:
        findings.add("ok", work.name, what)


def _train_images(plan: Plan) -> int | None:
    manifest = _read(plan.manifest, Manifest)
    if manifest and "train" in manifest.splits:
        return manifest.splits["train"].samples
    return (images_of(plan) or {}).get("train")


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    try:
        return read_record(path, kind)
    except UserError:
        return None
