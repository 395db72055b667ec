"""One training run from its plan to its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fourminutes.comm.launch import Launch, process_group, resolve_launch
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.data.loader import LoaderState, LoaderStateMismatch
from fourminutes.errors import UserError
from fourminutes.plan import DataPlan, Plan, RunPlan, run_of
from fourminutes.record import Manifest, Placement, RunRecord, provenance, read_record, write_record
from fourminutes.train.checkpoint import Saved, drop_all, load_newest, save_weights
from fourminutes.train.course import Course, begin, resume
from fourminutes.train.display import Display
from fourminutes.train.interrupt import stop_signals
from fourminutes.train.loop import train_epochs
from fourminutes.train.ranks import Ranks
from fourminutes.train.setup import Parts, set_up, settle_buckets

# A rank that says nothing for this long is lost; reading a cold data set or writing a checkpoint may take minutes.
_LOST_AFTER_S = 1800.0


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
        identity = hashlib.sha256(f"{self.settings.recipe_hash} {self.manifest.dataset_hash}".encode()).hexdigest()
        return self.plan.work / self.plan.name / f"{self.run}-{identity[:10]}"


def train(plan: Plan, run: str) -> RunRecord | None:
    """Train the run of that name, or go on with it from its newest checkpoint.

    To be called by every process of the launch alike. Rank 0 writes the record to `plan.run_record(run)` and
    returns it; the others return None. The final weights stay beside where the checkpoints were, as `final.pt`.

    Raises:
        UserError: no such run, the data set is not made, another number of processes than the plan's, a training
            set smaller than the global batch, a folder that cannot be written, a checkpoint that cannot be read.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint is written, and the same call goes on from it.
        RunFailed: the loss is no number any more.
    """
    job = _job(plan, run)
    launch = resolve_launch()
    _require_processes(job, launch)
    torch.set_num_threads(job.settings.threads)
    with stop_signals() as asked_to_stop, process_group(launch, timeout_s=_LOST_AFTER_S):
        return _train(job, launch, asked_to_stop)


def parameter_checksum(model: nn.Module) -> str:
    """SHA-256 over the bytes of the state dict's tensors, in its order, each in row-major order."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _train(job: Job, launch: Launch, asked_to_stop: Callable[[], bool]) -> RunRecord | None:
    topology = discover(launch, job.settings.reduce.group_ranks, timeout_s=_LOST_AFTER_S)
    ranks = Ranks.of(launch, timeout_s=_LOST_AFTER_S)
    saved = load_newest(job.checkpoints, ranks)
    parts = _parts(job, launch, topology, ranks, saved)
    settle_buckets(parts)
    course = resume(parts, saved) if saved else begin(parts)
    display = Display(
        job.run,
        epochs=job.settings.epochs,
        total_steps=parts.total_steps,
        step=course.step,
        global_batch=job.settings.batch.global_batch,
        enabled=ranks.is_first,
    )
    try:
        train_epochs(parts, course, display, checkpoints=job.checkpoints, asked_to_stop=asked_to_stop)
    finally:
        display.close()
        if parts.reduce_state is not None:
            parts.reduce_state.close()
    return _finish(job, parts, course, placement(launch, topology)) if ranks.is_first else None


def _parts(job: Job, launch: Launch, topology: Topology, ranks: Ranks, saved: Saved | None) -> Parts:
    state = LoaderState.from_dict(saved.own["loader"]) if saved else None
    try:
        return set_up(job.settings, job.manifest, job.data.folder, launch, topology, ranks, state)
    except LoaderStateMismatch as error:
        raise UserError(f"{job.checkpoints}: {error}; remove that folder to start the run anew") from error


def _finish(job: Job, parts: Parts, course: Course, where: Placement) -> RunRecord:
    """Keep the final weights, write the record, and only then let go of the checkpoints."""
    trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
    record = RunRecord(
        plan=job.plan.name,
        run=job.run,
        settings=job.settings,
        settings_hash=job.settings.recipe_hash,
        dataset=job.data.dataset,
        dataset_hash=job.manifest.dataset_hash,
        class_count=len(job.manifest.classes),
        parameters=sum(parameter.numel() for parameter in trained),
        gradient_tensors=len(trained),
        placement=where,
        provenance=provenance(),
        epochs=tuple(course.epochs),
        sessions=course.sessions("finished"),
        parameter_checksum=parameter_checksum(parts.model),
    )
    save_weights(job.checkpoints, parts.model.state_dict())
    write_record(job.plan.run_record(job.run), record)
    drop_all(job.checkpoints)
    return record


def _job(plan: Plan, run: str) -> Job:
    settings = plan.runs[run_of(plan, run)]
    if plan.data is None:
        raise UserError(f"plan {plan.name!r} has no data block; add one that names the pictures")
    if not plan.manifest.is_file():
        raise UserError(f"{plan.manifest}: the data set is not made yet; run `snakemake {plan.manifest}` first")
    manifest = read_record(plan.manifest, Manifest)
    train_images = manifest.splits["train"].samples
    if train_images < settings.batch.global_batch:
        raise UserError(
            f"run {run!r}: batch.global_batch {settings.batch.global_batch} is more than the {train_images} training "
            "images; choose a smaller one"
        )
    return Job(plan, run, settings, plan.data, manifest)


def _require_processes(job: Job, launch: Launch) -> None:
    wanted = job.settings.processes
    if launch.world_size != wanted:
        raise UserError(
            f"run {job.run!r}: its plan asks for {wanted} processes, but {launch.world_size} were started; start it by "
            f"`fourminutes launch --processes {wanted} -- fourminutes train ...`, by torchrun or by srun"
        )
