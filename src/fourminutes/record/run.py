"""The record of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan import ReducePlan, RunPlan
from fourminutes.record.base import Record
from fourminutes.record.provenance import Provenance


class Placement(Record):
    """Where the processes ran."""

    launcher: str = Field(description="what told the processes their ranks: slurm, torchrun (or `launch`), alone")
    hosts: tuple[str, ...] = Field(description="host of every rank, in rank order")
    device: str = Field(description="what each process computed on")
    backend: str | None = Field(description="library of the collectives; null for one process")
    arithmetic: str = Field("", description="number formats of storage and arithmetic in forward and backward passes")
    bn_images: int | None = Field(None, description="images that batch norm's statistics are over")


class StepTimes(Record):
    """Where an epoch's time went on rank 0, in seconds; the parts add up to `total_s`."""

    total_s: float
    input_wait_s: float = Field(description="waiting for the loader")
    forward_s: float = Field(description="forward passes and losses")
    backward_s: float = Field(description="backward passes, with what communication they hide")
    exposed_reduce_s: float = Field(description="waiting for gradients after the backward pass")
    optimizer_s: float
    evaluation_s: float = Field(description="evaluation, with what precedes it: statistics averaged or measured anew")
    checkpoint_s: float = Field(description="taking checkpoints; writing them goes on beside the training")
    other_s: float

    @property
    def compute_s(self) -> float:
        """Forward and backward passes."""
        return self.forward_s + self.backward_s


class Epoch(Record):
    """One pass over the training set, and the evaluation after it."""

    epoch: int = Field(description="1 is the first")
    steps: int = Field(description="optimizer steps up to the end of this epoch, from the start of the run")
    train_loss: float
    train_images: int
    dropped_images: int = Field(description="remainder that did not fill a global batch")
    skipped_steps: int = Field(0, description="batches of this epoch whose step was skipped for an overflow")
    loss_scale: float | None = Field(None, description="factor on the loss at the epoch's end; null without one")
    flushed_percent: float | None = Field(
        None,
        description="share of the last step's updates that fp16 flushed to zero; null where it stores no weights",
    )
    rate: float = Field(description="learning rate of the last step")
    val_loss: float | None = Field(description="cross-entropy in nats; null where it is no finite number")
    top1_percent: float
    top5_percent: float
    val_images: int = Field(description="evaluated, each exactly once")
    images_per_s: float = Field(description="training images over the epoch's time without evaluation and checkpoints")
    times: StepTimes


class Session(Record):
    """One stretch of the run between a start and an end; a run that was interrupted has several."""

    started: str = Field(description="UTC, ISO 8601")
    from_step: int
    to_step: int
    note: str = Field("", description="what was not as in an undisturbed run, such as another number of processes")
    wall_s: float
    ended: Literal["finished", "interrupted", "running"] = Field(description="running: ended without a word")
    why: str = Field("", description="what asked for an interruption, such as SIGUSR1")
    host: str = Field("", description="of rank 0")
    job: str | None = Field(
        None, description="id of the Slurm job, and behind a + how often it had been put back into the queue"
    )
    start: str = Field("", description="name of this start, as in the run's lease")


class TracedSpan(Record):
    """A stretch of a bucket's way: queued, cast, a stage, or the division."""

    bucket: int = Field(description="from 0, in the order of reduction")
    name: str
    start_s: float = Field(description="from the first bucket's readiness on")
    end_s: float


class TracedStep(Record):
    """Every bucket's way through one step, and what of the communication the backward pass hid."""

    step: int
    spans: tuple[TracedSpan, ...] = Field(min_length=1, description="rank 0's")
    busy_s: tuple[float, ...] = Field(description="time in which some bucket was being reduced, by rank")
    exposed_s: tuple[float, ...] = Field(description="of that, time after the last bucket was ready, by rank")

    @property
    def hidden_percent(self) -> float:
        """Share of rank 0's communication that ran behind the backward pass."""
        return 100 * (1 - self.exposed_s[0] / self.busy_s[0]) if self.busy_s[0] else 100.0


class Reduction(Record):
    """How gradients were averaged in the end."""

    settings: ReducePlan = Field(description="with what a tuning chose in its place")
    buckets: tuple[int, ...] = Field(description="elements of every bucket, in the order of their reduction")
    traced: TracedStep | None = Field(None, description="null where the plan has no step traced")


class RunRecord(Record):
    """A finished run: all that is needed to repeat it, and what came out."""

    kind: Literal["run"] = "run"
    plan: str
    run: str
    settings: RunPlan = Field(description="every resolved value")
    settings_hash: str = Field(description="of all settings that decide the weights")
    dataset: str
    dataset_hash: str
    class_count: int
    parameters: int = Field(description="number of trained parameters")
    gradient_tensors: int
    placement: Placement
    provenance: Provenance
    epochs: tuple[Epoch, ...]
    sessions: tuple[Session, ...]
    parameter_checksum: str = Field(description="SHA-256 over the final weights, in the order of the state dict")
    reduction: Reduction | None = Field(None, description="null for one process")

    @property
    def final(self) -> Epoch:
        """The last epoch."""
        return self.epochs[-1]

    @property
    def wall_s(self) -> float:
        """Time over all sessions, in seconds."""
        return sum(session.wall_s for session in self.sessions)
