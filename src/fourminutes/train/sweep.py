"""A sweep: trials of one run, one after another, each in the ledger before the next begins."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from pydantic import ValidationError

from fourminutes.comm.group import device_of
from fourminutes.comm.launch import resolve_launch
from fourminutes.errors import Interrupted, RunFailed, UserError
from fourminutes.plan import DataPlan, Plan, RunPlan, SweepPlan, TuningPlan
from fourminutes.plan.words import first_problem
from fourminutes.progress import progress
from fourminutes.record import Manifest, SweepRecord, Trial, packed_hits, provenance, read_record, write_record
from fourminutes.train.agreement import require_agreement
from fourminutes.train.course import Course, begin
from fourminutes.train.interrupt import stop_signals
from fourminutes.train.listen import Listener
from fourminutes.train.loop import stepper_of, train_epochs
from fourminutes.train.requirements import data_of, in_words, require_fit
from fourminutes.train.run import Place, identity, joined, lease_of, placed
from fourminutes.train.search import Want, chosen_value, is_at_edge, next_final, next_tuning, tune_percent
from fourminutes.train.setup import Parts, set_up, settle_buckets
from fourminutes.train.source import Input, Position


@dataclass(frozen=True)
class Arm:
    """A sweep as asked for, and the data that it trains on."""

    plan: Plan
    name: str
    sweep: SweepPlan
    tuning: TuningPlan
    data: DataPlan
    manifest: Manifest
    taken_over: float | None = None
    """The value that another sweep chose, scaled to this one's batch; None where this one is tuned itself."""

    @property
    def val_images(self) -> int:
        """Validation images in all: those that choose, and those that are reported on."""
        return self.manifest.splits["val"].samples


def run_sweep(plan: Plan, name: str) -> SweepRecord | None:
    """Make every trial of the sweep of that name that its ledger lacks.

    To be called by every process of the launch alike. Rank 0 writes the ledger to `plan.sweep_ledger(name)` after each
    trial, in the end to `plan.sweep_record(name)`, and returns it; the others return None. Trials of other settings or
    pictures than now are not taken over.

    Raises:
        UserError: no such sweep, the data set is not made, too few pictures, another number of processes than the
            plan's, or a sweep whose value this one takes is not tuned yet.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; the trial under way is lost, those before it are kept.
    """
    arm = _arm(plan, name)
    launch, run = resolve_launch(), arm.sweep.run
    require_fit(f"sweep {name!r}", run, arm.manifest, launch)
    torch.set_num_threads(run.threads)
    with in_words(f"sweep {name!r}", run), stop_signals() as asked_to_stop, joined(launch, run):
        place = Place.find(launch, run)
        with lease_of(place.ranks, plan.sweep_lease(name)):
            return _sweep(arm, place, asked_to_stop)


def with_value(run: RunPlan, key: str, value: float, seed: int) -> RunPlan:
    """The run with `value` at `key`, a place such as ``schedule.base_rate``, and with its own seed.

    Raises:
        UserError: a run has no such place, or the value is none for it.
    """
    settings: dict[str, Any] = run.model_dump()
    *path, last = key.split(".")
    block = settings
    for part in path:
        block = block.get(part, {}) if isinstance(block, dict) else {}
    if not isinstance(block, dict) or last not in block or isinstance(block[last], dict):
        raise UserError(f"sweeps: key {key!r} is no place in a run; workflow/schemas/plan.md lists all")
    block[last] = int(value) if value.is_integer() else value  # which is right for whole numbers and for others
    try:
        return RunPlan.model_validate(settings | {"seed": seed})
    except ValidationError as error:
        raise UserError(f"sweeps: {key} cannot be {value:g}: {first_problem(error, RunPlan).words}") from error


def _sweep(arm: Arm, place: Place, asked_to_stop: Callable[[], int]) -> SweepRecord | None:
    require_agreement(place.ranks, place.topology.hosts, identity(arm.sweep.run, arm.manifest.dataset_hash))
    arm = replace(arm, taken_over=place.ranks.first(place.ranks.on_first(lambda: _taken_over(arm))))
    made = place.ranks.first(place.ranks.on_first(lambda: _made_before(arm))) or {}
    trials: list[Trial] = []
    made_here = 0
    bar = progress(_trial_count(arm), "trial", arm.name, enabled=place.ranks.is_first)
    try:
        for want in _wanted(arm, trials):
            known = made.pop(want, None)
            trials.append(known or _trial(arm, want, place, asked_to_stop, is_first=made_here == 0))
            made_here += known is None
            bar.set_postfix(value=f"{want.value:g}", top1=f"{tune_percent(arm.tuning, trials[-1]):.1f}", refresh=False)
            bar.update()
            if known is None:
                # With those whose turn has not come again yet: whenever this ends, nothing is lost.
                growing = _ledger(arm, [*trials, *made.values()], place)
                place.ranks.on_first(partial(write_record, arm.plan.sweep_ledger(arm.name), growing))
    finally:
        bar.close()
    return place.ranks.on_first(lambda: _written(arm, _ledger(arm, trials, place)))


def _wanted(arm: Arm, trials: list[Trial]) -> Iterator[Want]:
    """The trials still to be made; whoever takes one adds it to `trials`."""
    while want := _next_tuning(arm, trials):
        yield want
    value = _chosen(arm, trials)
    while value is not None and (want := next_final(arm.tuning, value, trials)):
        yield want


def _chosen(arm: Arm, trials: list[Trial]) -> float | None:
    """The value of the final trials; None while it is open."""
    if arm.taken_over is not None:
        return arm.taken_over
    if arm.sweep.start is None or _next_tuning(arm, trials) is not None:
        return None
    return chosen_value(arm.tuning, trials)


def _next_tuning(arm: Arm, trials: list[Trial]) -> Want | None:
    """The next trial that chooses the value; none where the value is taken over."""
    if arm.sweep.start is None:
        return None
    return next_tuning(arm.tuning, arm.sweep.start, trials, lambda value: _can_be(arm, value))


def _can_be(arm: Arm, value: float) -> bool:
    """Whether a run can have the value; one beyond the grid that was asked for need not."""
    try:
        run = with_value(arm.sweep.run, arm.sweep.key, value, seed=0)
    except UserError:
        return False
    return run.batch.global_batch <= arm.manifest.splits["train"].samples


def _taken_over(arm: Arm) -> float | None:
    """The chosen value of the sweep that this one names, times the ratio of the global batches."""
    if arm.sweep.scaled_from is None:
        return None
    path = arm.plan.sweep_record(arm.sweep.scaled_from)
    if not path.is_file():
        raise UserError(f"{path}: no such record yet; make the sweep {arm.sweep.scaled_from!r} first")
    source = read_record(path, SweepRecord)
    if source.chosen is None or (source.dataset_hash, source.key) != (arm.manifest.dataset_hash, arm.sweep.key):
        raise UserError(f"{path}: is not tuned on these pictures and for {arm.sweep.key}; remove it and make it again")
    return source.chosen * arm.sweep.run.batch.global_batch / source.settings.batch.global_batch


def _trial(arm: Arm, want: Want, place: Place, asked_to_stop: Callable[[], int], *, is_first: bool) -> Trial:
    """Train once. A trial that diverges has no hits, and is in the ledger all the same.

    Raises:
        RunFailed: SIGUSR1 came, as before a time limit, in the `is_first` trial of this start: so it would ever.
    """
    settings = with_value(arm.sweep.run, arm.sweep.key, want.value, want.seed)
    start_s = time.monotonic()
    source = Input(settings, arm.manifest, arm.data.folder, place.launch, device_of(place.launch))
    parts = set_up(source, place.topology, place.ranks, Position())
    course = begin(parts)
    diverged = False
    try:
        settle_buckets(parts)
        train_epochs(parts, course, stepper_of(parts), Listener(), None, asked_to_stop=asked_to_stop)
    except RunFailed:
        diverged = True
    except Interrupted:
        if is_first and any(place.ranks.gather(asked_to_stop() == signal.SIGUSR1)):
            raise RunFailed(f"sweep {arm.name!r}: no trial came to its end in this job's time; give it more") from None
        raise Interrupted("interrupted; finished trials are kept; run the same command to go on") from None
    finally:
        parts.close()
    return _entry(arm, want, parts, course, diverged, time.monotonic() - start_s)


def _entry(arm: Arm, want: Want, parts: Parts, course: Course, diverged: bool, wall_s: float) -> Trial:
    flushed = [epoch.flushed_percent for epoch in course.epochs if epoch.flushed_percent is not None]
    return Trial(
        purpose=want.purpose,
        value=want.value,
        seed=want.seed,
        settings_hash=parts.settings.recipe_hash,
        diverged=diverged,
        hits=packed_hits([False] * arm.val_images if diverged else course.hits),
        train_loss=None if diverged else course.epochs[-1].train_loss,
        skipped_steps=sum(epoch.skipped_steps for epoch in course.epochs),
        flushed_percent=fmean(flushed) if flushed else None,
        wall_s=wall_s,
    )


def _ledger(arm: Arm, trials: list[Trial], place: Place) -> SweepRecord:
    chosen = _chosen(arm, trials)
    settings = arm.sweep.run
    device = device_of(place.launch)
    return SweepRecord(
        plan=arm.plan.name,
        sweep=arm.name,
        settings=settings,
        key=arm.sweep.key,
        tuning=arm.tuning,
        dataset=arm.data.dataset,
        dataset_hash=arm.manifest.dataset_hash,
        class_count=len(arm.manifest.classes),
        train_images=arm.manifest.splits["train"].samples,
        val_images=arm.val_images,
        steps_per_epoch=arm.manifest.splits["train"].samples // settings.batch.global_batch,
        trials=tuple(trials),
        chosen=chosen,
        chosen_from=arm.sweep.scaled_from,
        at_edge=chosen is not None and is_at_edge(trials, chosen),
        placement=placed(settings, place, device),
        provenance=provenance(),
    )


def _written(arm: Arm, ledger: SweepRecord) -> SweepRecord:
    """The ledger, as the sweep's record; where this start added no trial to it, of where and when the last was made."""
    for before in _ledgers(arm):
        if before.trials == ledger.trials:
            ledger = ledger.model_copy(update={"placement": before.placement, "provenance": before.provenance})
    write_record(arm.plan.sweep_record(arm.name), ledger)
    return ledger


def _made_before(arm: Arm) -> dict[Want, Trial]:
    """The trials of an earlier start that this one would repeat bit for bit, by what they were made for.

    All trials of a ledger are made with its settings. These are compared as they read now, not by the hash of then: a
    key that a plan has gained since had its default.
    """
    return {
        Want(trial.purpose, trial.value, trial.seed): trial
        for ledger in _ledgers(arm)
        if (ledger.dataset_hash, ledger.key) == (arm.manifest.dataset_hash, arm.sweep.key)
        for trial in ledger.trials
        if _recipe(ledger.settings, arm, trial) == _recipe(arm.sweep.run, arm, trial)
    }


def _ledgers(arm: Arm) -> list[SweepRecord]:
    """What earlier starts left: the record of a finished sweep, and the ledger as far as it came."""
    paths = (arm.plan.sweep_record(arm.name), arm.plan.sweep_ledger(arm.name))
    return [read_record(path, SweepRecord) for path in paths if path.is_file()]


def _recipe(run: RunPlan, arm: Arm, trial: Trial) -> str:
    """What the trial trains where `run` is the sweep's run."""
    return with_value(run, arm.sweep.key, trial.value, trial.seed).recipe_hash


def _trial_count(arm: Arm) -> int:
    """Trials of the whole sweep."""
    return arm.tuning.final_seeds + (arm.tuning.budget if arm.sweep.start is not None else 0)


def _arm(plan: Plan, name: str) -> Arm:
    if name not in plan.sweeps or plan.tuning is None:
        raise UserError(f"plan {plan.name!r} has no sweep {name!r}; it has: {', '.join(plan.sweeps) or 'none'}")
    data, manifest = data_of(plan)
    arm = Arm(plan, name, plan.sweeps[name], plan.tuning, data, manifest)
    if plan.tuning.tune_images >= arm.val_images:
        raise UserError(
            f"tuning.tune_images {plan.tuning.tune_images} leaves none of the {arm.val_images} validation images to "
            "report on; lower it, or split the pictures anew with data.resplit"
        )
    for point in range(plan.tuning.points if arm.sweep.start is not None else 0):
        with_value(arm.sweep.run, arm.sweep.key, (arm.sweep.start or 0) * plan.tuning.factor**point, seed=0)
    return arm
