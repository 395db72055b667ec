"""Timing a run's training step on the processes at hand: warmed up, repeated, and nothing else done meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import torch

from fourminutes.comm.group import device_of
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.whereabouts import HERE
from fourminutes.data.loader import Batch
from fourminutes.errors import Interrupted
from fourminutes.plan import Plan, RunPlan, ScalingPlan, SyntheticSource, content_hash, series_settings
from fourminutes.progress import Progress, progress
from fourminutes.record import Reduction, Repeat, ScalingRecord, StepTimes, provenance
from fourminutes.train.agreement import require_agreement
from fourminutes.train.course import Course
from fourminutes.train.held import HeldInput
from fourminutes.train.interrupt import StopBoard, stop_signals
from fourminutes.train.listen import Listener, StepNews
from fourminutes.train.loop import one_step, stepper_of
from fourminutes.train.requirements import data_of, in_words, require_fit, require_place
from fourminutes.train.run import Place, identity, joined, placed
from fourminutes.train.setup import Parts, set_up, settle_buckets
from fourminutes.train.source import Input, Position, Source
from fourminutes.train.timeline import Timeline, summed

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Taken:
    """What came of the timed steps.

    Attributes:
        repeats: where the time went.
        skipped: how many steps were skipped.
    """

    repeats: tuple[Repeat, ...]
    skipped: int


@dataclass(frozen=True)
class Series:
    """A series as asked for, on one number of processes."""

    plan: Plan
    name: str
    how: ScalingPlan
    settings: RunPlan


def measure_scaling(plan: Plan, name: str, processes: int) -> ScalingRecord | None:
    """Time the step of the plan's series of that name; rank 0 gets the record, the others None.

    To be called by every process of the launch alike. Every step is a whole one of a training, with the loader, the
    forward and backward passes, the reduction and the update. Weights are drawn anew and let go of at the end; neither
    checkpoints nor anything else is written.

    Raises:
        UserError: no such series, the data set is not made where pictures are wanted, or another number of processes
            was started.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; nothing is kept.
        RunFailed: steps stay without an update, for overflows.
    """
    settings = series_settings(plan, name, processes)
    series = Series(plan, name, plan.scaling[name], settings)
    launch, what = resolve_launch(), f"series {name!r}"
    source, dataset_hash = _source(series, launch)
    torch.set_num_threads(settings.threads)
    with in_words(what, settings), stop_signals() as asked_to_stop, joined(launch, settings):
        place = Place.find(launch, settings)
        facts = identity(settings, dataset_hash or "synthetic") | {"series": content_hash(series.how)}
        require_agreement(place.ranks, place.topology.hosts, facts)
        parts = set_up(source, place.topology, place.ranks, Position())
        try:
            settle_buckets(parts)
            taken = _take_steps(parts, series, asked_to_stop)
        finally:
            parts.close()
        return place.ranks.on_first(lambda: _record(series, parts, place, dataset_hash, taken))


def _source(series: Series, launch: Launch) -> tuple[Source, str | None]:
    """Where the pictures come from, and the hash of their data set, if it is one."""
    plan, settings, what = series.plan, series.settings, f"series {series.name!r}"
    if series.how.input == "synthetic":
        require_place(what, settings, launch)
        steps = series.how.total_steps + 1
        return HeldInput(settings, _class_count(plan), launch, device_of(launch), steps), None
    data, manifest = data_of(plan)
    require_fit(what, settings, manifest, launch)
    return Input(settings, manifest, data.folder, launch, device_of(launch)), manifest.dataset_hash


def _class_count(plan: Plan) -> int:
    """By the plan alone, so that it is the same before and after the data set is made."""
    source = plan.data.source if plan.data else None
    return source.classes if isinstance(source, SyntheticSource) else _IMAGENET_CLASSES


class Counted(Listener):
    """Counts steps for whoever waits, and those among the timed ones that were skipped."""

    def __init__(self, bar: Progress, warmup_steps: int) -> None:
        self._bar, self._warmup_steps = bar, warmup_steps
        self.skipped = 0

    def step(self, news: StepNews) -> None:
        """One more global batch is done."""
        self._bar.update()
        self.skipped += news.skipped and news.batch > self._warmup_steps


def _take_steps(parts: Parts, series: Series, asked_to_stop: Callable[[], int]) -> Taken:
    """Warm up, and time what is to be timed.

    Raises:
        Interrupted: a rank was asked to stop.
    """
    how, clock = series.how, Timeline(parts.device)
    course, stepper, board = Course(clock), stepper_of(parts), StopBoard(parts.ranks)
    with progress(
        how.total_steps, "step", f"{series.name}-{parts.settings.processes}", enabled=parts.ranks.is_first
    ) as bar:
        counted = Counted(bar, how.warmup_steps)
        clock.pass_over()
        for number, batches in zip(range(1, how.total_steps + 1), _inputs(parts, clock), strict=False):
            one_step(parts, course, batches, stepper, counted)
            clock.end_step(parts.reduce_state.take_exposed_s() if parts.reduce_state else 0.0)
            if board.exchange(asked_to_stop(), is_durable=number == how.total_steps):
                raise Interrupted("interrupted; nothing is kept of a measurement; run the same command to start again")
    return Taken(_repeats(parts, clock.steps()[how.warmup_steps :], how.steps), counted.skipped)


def _repeats(parts: Parts, steps: list[StepTimes], size: int) -> tuple[Repeat, ...]:
    """This rank's steps, so many a repeat, with what all ranks waited."""
    parted = [steps[first : first + size] for first in range(0, len(steps), size)]
    times = [summed(few) for few in parted]
    waited_s = zip(*parts.ranks.gather([one.exposed_reduce_s for one in times]), strict=True)
    return tuple(
        Repeat(steps_s=tuple(step.total_s for step in few), times=whole, waited_s=waited)
        for few, whole, waited in zip(parted, times, waited_s, strict=True)
    )


def _inputs(parts: Parts, clock: Timeline) -> Iterator[Iterator[Batch]]:
    """For each step the batches to take from, epoch after epoch; what is between two epochs belongs to no step."""
    while True:
        batches = parts.training.epoch()
        yield from repeat(batches, parts.steps_per_epoch)
        HERE.begin("rest of the epoch's input")
        for _ in batches:
            pass
        parts.ranks.gather(None)  # or the first to be done would wait for the others within its next step
        clock.pass_over()


def _record(series: Series, parts: Parts, place: Place, dataset_hash: str | None, taken: Taken) -> ScalingRecord:
    state = parts.reduce_state
    return ScalingRecord(
        plan=series.plan.name,
        series=series.name,
        measured=series.how,
        settings=series.settings,
        dataset_hash=dataset_hash,
        class_count=parts.input.class_count,
        parameters=sum(weight.numel() for weight in parts.weights),
        placement=placed(series.settings, place, parts.device),
        provenance=provenance(),
        reduction=Reduction(settings=state.settings, buckets=tuple(state.layout)) if state else None,
        skipped_steps=taken.skipped,
        repeats=taken.repeats,
    )
