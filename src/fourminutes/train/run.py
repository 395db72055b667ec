"""One training run from its plan to its record."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fourminutes import __version__
from fourminutes.comm.group import COLLECTIVES_WAIT_LONGER_S, device_of, process_group
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.lease import Held, held
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.comm.whereabouts import HERE
from fourminutes.data.loader import LoaderState, LoaderStateMismatch
from fourminutes.errors import RunFailed, UserError
from fourminutes.plan import DataPlan, Plan, RunPlan, run_of
from fourminutes.record import Manifest, Placement, Reduction, RunRecord, code, provenance, write_record
from fourminutes.train.agreement import require_agreement
from fourminutes.train.checkpoint import BEST, FINAL, Saved, drop_all, load_newest, save_weights
from fourminutes.train.course import Course, begin, resume
from fourminutes.train.display import Display
from fourminutes.train.finished import finished_meanwhile
from fourminutes.train.interrupt import stop_signals
from fourminutes.train.listen import Listener, Listeners
from fourminutes.train.loop import stepper_of, train_epochs
from fourminutes.train.mlperf import MlperfLog
from fourminutes.train.precision import arithmetic
from fourminutes.train.ranks import Ranks
from fourminutes.train.requirements import data_of, in_words, require_fit
from fourminutes.train.setup import Parts, set_up, settle_buckets
from fourminutes.train.source import Input, Position
from fourminutes.train.tensorboard import tensorboard
from fourminutes.train.trace_file import TraceFile
from fourminutes.train.writer import CheckpointWriter


@dataclass(frozen=True)
class Job:
    """A run as asked for: the plan's part of it, and the data it trains on."""

    plan: Plan
    run: str
    settings: RunPlan
    data: DataPlan
    manifest: Manifest

    @property
    def checkpoints(self) -> Path:
        """The run's own folder; another recipe, or other pictures, never meet its checkpoints."""
        identity = hashlib.sha256(f"{self.settings.lineage_hash} {self.manifest.dataset_hash}".encode()).hexdigest()
        return self.plan.work / self.plan.name / f"{self.run}-{identity[:10]}"

    @property
    def finished(self) -> Path:
        """The record of the finished run, beside its weights."""
        return self.checkpoints / "record.json"

    @property
    def tuning(self) -> Path:
        """What `reduce.algorithm: auto` found at the run's start."""
        return self.checkpoints / "tuning.json"

    def trace_file(self, hosts: Sequence[str]) -> TraceFile | None:
        """Where the traced step is written, of ranks on `hosts`; None where none is traced."""
        if (step := self.settings.reduce.trace_step) is None:
            return None
        reduce = self.settings.reduce.model_dump(mode="json")
        about = {"plan": self.plan.name, "run": self.run, "settings": self.settings.recipe_hash, "reduce": reduce}
        return TraceFile(Path("logs") / self.plan.name / "trace" / f"{self.run}.json", step, hosts, about)


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others, found out once for all that it trains."""

    launch: Launch
    topology: Topology
    ranks: Ranks

    @classmethod
    def find(cls, launch: Launch, settings: RunPlan) -> Place:
        """To be called by every process, inside `joined`."""
        timeout_s = settings.lost_after_s + COLLECTIVES_WAIT_LONGER_S
        topology = discover(launch, settings.reduce.group_ranks, timeout_s=timeout_s)
        return cls(launch, topology, Ranks.of(launch, timeout_s=timeout_s))


def train(plan: Plan, run: str) -> RunRecord | None:
    """Train the run of that name, or go on with it from its newest checkpoint.

    To be called by every process of the launch alike. Rank 0 writes the record to `plan.run_record(run)` and
    returns it; the others return None. The final weights stay beside where the checkpoints were, as `final.pt`, and
    those of the epoch with the highest top-1 accuracy as `best.pt`. Where another start has finished the run since this
    one was asked for, its record is taken, and nothing is trained.

    Raises:
        UserError: no such run, the data set is not made, another number of processes than the plan's, a training
            set smaller than the global batch, a folder that cannot be written, a checkpoint that cannot be read, a
            process with other settings, data or version, a GPU whose memory is too small, another start at work.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint is written, and the same call goes on from it.
        RunFailed: loss or gradients are no numbers any more, a process's weights have drifted from the others', or
            another start of the run has taken over.
    """
    data, manifest = data_of(plan)
    job = Job(plan, run, plan.runs[run_of(plan, run)], data, manifest)
    launch = resolve_launch()
    require_fit(f"run {run!r}", job.settings, manifest, launch)
    torch.set_num_threads(job.settings.threads)
    with in_words(f"run {run!r}", job.settings), stop_signals() as asked_to_stop, joined(launch, job.settings):
        place = Place.find(launch, job.settings)
        with lease_of(place.ranks, plan.run_lease(run)) as lease:
            return _train(job, place, asked_to_stop, lease)


@contextmanager
def lease_of(ranks: Ranks, path: Path) -> Iterator[Held | None]:
    """Hold the lease for the length of the block; rank 0 does, for all, and it alone gets it.

    Raises:
        UserError: another start is at work; raised on all ranks.
    """
    with ExitStack() as stack:
        yield ranks.on_first(lambda: stack.enter_context(held(path, waits=False)))


def joined(launch: Launch, settings: RunPlan) -> AbstractContextManager[None]:
    """`process_group` with the patience that the plan asks for."""
    code()  # for the record, before anything else is checked out
    HERE.begin("the meeting of all ranks")
    return process_group(launch, timeout_s=settings.lost_after_s + COLLECTIVES_WAIT_LONGER_S)


def parameter_checksum(model: nn.Module) -> str:
    """SHA-256 over the bytes of the state dict's tensors, in its order, each in row-major order."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity(settings: RunPlan, dataset_hash: str) -> dict[str, str]:
    """What all ranks of a training have to have in common."""
    return {
        "version of fourminutes": __version__,
        "version of torch": torch.__version__,
        "settings": settings.recipe_hash,
        "dataset": dataset_hash,
    }


def _reduction(job: Job, parts: Parts, place: Place) -> Reduction | None:
    """How gradients were in fact averaged; None for one process."""
    if (state := parts.reduce_state) is None:
        return None
    trace = job.trace_file(place.topology.hosts)
    traced = trace.read() if trace else None
    return Reduction(settings=state.settings, buckets=tuple(state.layout), traced=traced)


def placed(settings: RunPlan, place: Place, device: torch.device) -> Placement:
    """Where a training ran and how it computed, as recorded."""
    return placement(place.launch, place.topology).model_copy(
        update={
            "arithmetic": arithmetic(settings.precision, device),
            "bn_images": settings.batch.per_device * settings.batch.bn_span,
        }
    )


def _train(job: Job, place: Place, asked_to_stop: Callable[[], int], lease: Held | None) -> RunRecord | None:
    HERE.begin("set-up")
    require_agreement(place.ranks, place.topology.hosts, identity(job.settings, job.manifest.dataset_hash))
    finished = place.ranks.first(place.ranks.on_first(lambda: finished_meanwhile(job.finished, job.settings, lease)))
    if finished is not None:
        return place.ranks.on_first(lambda: _taken(job, finished))
    notes: list[str] = []
    saved = load_newest(job.checkpoints, place.ranks, notes)
    if saved is None:  # a run that starts is tuned anew
        place.ranks.on_first(lambda: job.tuning.unlink(missing_ok=True))
    parts = _parts(job, place, saved)
    try:
        settle_buckets(parts)
        about = lease.began if lease else None
        course = resume(parts, saved, notes, about) if saved else begin(parts, notes, about)
        listener = place.ranks.on_first(lambda: _listeners(job, parts, course, place)) or Listener()
        require = lease.require if lease else lambda: None
        writer = CheckpointWriter(job.checkpoints, place.ranks, keep=job.settings.checkpoint.keep, require=require)
        _train_and_tell(parts, course, listener, writer, asked_to_stop)
    finally:
        parts.close()
    HERE.begin("the run's end")
    return place.ranks.on_first(lambda: _finish(job, parts, course, place, require))


def _train_and_tell(
    parts: Parts, course: Course, listener: Listener, writer: CheckpointWriter, asked_to_stop: Callable[[], int]
) -> None:
    """Train to the end; `listener` hears of all of it, but of no end where the run is only interrupted."""
    try:
        stepper = stepper_of(parts)
        with writer:
            listener.run_begins()
            train_epochs(parts, course, stepper, listener, writer, asked_to_stop=asked_to_stop)
        listener.run_ends("success")
    except RunFailed:
        listener.run_ends("aborted")
        raise
    finally:
        listener.close()


def _parts(job: Job, place: Place, saved: Saved | None) -> Parts:
    source = Input(job.settings, job.manifest, job.data.folder, place.launch, device_of(place.launch))
    try:
        return set_up(source, place.topology, place.ranks, _position(saved), job.tuning)
    except LoaderStateMismatch as error:
        raise UserError(f"{job.checkpoints}: {error}; remove that folder to start the run anew") from error


def _position(saved: Saved | None) -> Position:
    """Where the input goes on: where it stopped, or, for another number of processes, with the next epoch."""
    if saved is None:
        return Position()
    if saved.own is None:
        return Position(epoch=len(saved.shared["epochs"]))
    state = LoaderState.from_dict(saved.own["loader"])
    return Position(epoch=state.first_epoch, state=state)


def _listeners(job: Job, parts: Parts, course: Course, place: Place) -> Listener:
    """Whoever is told how the run goes; rank 0's alone."""
    settings = job.settings
    display = Display(
        job.run,
        epochs=settings.epochs,
        total_steps=parts.total_steps,
        step=course.batch,
        global_batch=settings.batch.global_batch,
        enabled=True,
        loss_scale=settings.loss_scale.initial,
    )
    listeners: list[Listener] = [display]
    listeners += tensorboard(Path("logs") / job.plan.name / "tensorboard" / job.run, from_step=course.batch)
    if trace := job.trace_file(place.topology.hosts):
        listeners.append(trace)
    if job.plan.mlperf is not None:
        log = MlperfLog(
            job.plan.results / "mlperf" / f"{job.run}.log",
            settings,
            job.plan.mlperf,
            train_images=parts.train_images,
            val_images=parts.val_images,
            steps_per_epoch=parts.steps_per_epoch,
            resumed=course.batch > 0,
        )
        listeners.append(log)
    return Listeners(listeners)


def _taken(job: Job, finished: RunRecord) -> RunRecord:
    """The record of the start that has finished the run, as this one's."""
    by = finished.sessions[-1].job
    who = f"job {by}" if by else finished.provenance.host
    print(f"fourminutes: run {job.run}: {who} has finished it meanwhile; nothing is left to do", file=sys.stderr)
    write_record(job.plan.run_record(job.run), finished)
    drop_all(job.checkpoints)
    return finished


def _finish(job: Job, parts: Parts, course: Course, place: Place, require: Callable[[], None]) -> RunRecord:
    """Keep the final weights, write the record, and only then let go of the checkpoints."""
    require()
    record = RunRecord(
        plan=job.plan.name,
        run=job.run,
        settings=job.settings,
        settings_hash=job.settings.recipe_hash,
        dataset=job.data.dataset,
        dataset_hash=job.manifest.dataset_hash,
        class_count=len(job.manifest.classes),
        parameters=sum(weight.numel() for weight in parts.weights),
        gradient_tensors=len(parts.weights),
        placement=placed(job.settings, place, parts.device),
        provenance=provenance(),
        epochs=tuple(course.epochs),
        sessions=course.sessions("finished"),
        parameter_checksum=parameter_checksum(parts.model),
        reduction=_reduction(job, parts, place),
    )
    save_weights(job.checkpoints / FINAL, parts.model.state_dict())
    if job.settings.checkpoint.keep_best and course.last_is_best:
        save_weights(job.checkpoints / BEST, parts.model.state_dict())
    # First where neither Snakemake nor DVC removes it: a start that comes too late takes it from there.
    write_record(job.finished, record)
    write_record(job.plan.run_record(job.run), record)
    drop_all(job.checkpoints)
    return record
