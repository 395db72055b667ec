"""How far a run has come: all that grows as it goes, and goes on after an interruption."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fourminutes.comm.holder import Lease, Start
from fourminutes.record import Epoch, Session, utc_now
from fourminutes.train.accounting import StepClock
from fourminutes.train.checkpoint import Saved, State
from fourminutes.train.setup import Parts


@dataclass
class Course:
    """The course of a run up to now.

    Attributes:
        clock: where the epoch's time went so far.
        batch: global batches trained on since the start of the run.
        step: optimizer steps done; an overflow skips a step, and the schedule waits for it.
        losses: this rank's losses in the epoch under way, but those that are no finite numbers.
        skipped: steps skipped in the epoch under way.
        flushed: share of an update that half precision flushed to zero, 0 to 1; of this epoch's last step, if measured.
        is_due: a checkpoint is due, at the next step that is not skipped.
        epochs: finished epochs.
        hits: what the last evaluation said of every validation image; of this session only.
        earlier: sessions before this one.
        from_step: step at which this session began.
        note: what was not as in an undisturbed run in this session.
        start: which start of the run this session is, and where; None on ranks that don't tell of it.
    """

    clock: StepClock
    batch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    flushed: float | None = None
    is_due: bool = False
    epochs: list[Epoch] = field(default_factory=list)
    hits: tuple[bool, ...] = ()
    earlier: tuple[Session, ...] = ()
    from_step: int = 0
    note: str = ""
    start: Start | None = None
    started: str = field(default_factory=utc_now)
    _started_s: float = field(default_factory=time.monotonic)

    @property
    def last_is_best(self) -> bool:
        """Whether no epoch before the last finished one had a higher top-1 accuracy."""
        return bool(self.epochs) and self.epochs[-1].top1_percent >= max(epoch.top1_percent for epoch in self.epochs)

    def sessions(self, ended: str, *, by_signal: int | None = None) -> tuple[Session, ...]:
        """All sessions, this one as ended in the given way."""
        this = Session.model_validate(
            {
                "started": self.started,
                "from_step": self.from_step,
                "to_step": self.step,
                "note": self.note,
                "wall_s": time.monotonic() - self._started_s,
                "ended": ended,
                "why": signal.Signals(by_signal).name if by_signal else "",
                **_told_of(self.start),
            }
        )
        return (*self.earlier, this)


def _told_of(start: Start | None) -> dict[str, str | None]:
    """What a session says of its start."""
    if start is None:
        return {}
    job = f"{start.job}+{start.restarts}" if start.job and start.restarts else start.job
    return {"host": start.host, "job": job, "start": start.start}


def shared_state(parts: Parts, course: Course, *, by_signal: int | None) -> State:
    """What a checkpoint holds once for all ranks; `by_signal` asked for it, if the run is to end there."""
    ended = "running" if by_signal is None else "interrupted"
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "loss_scale": parts.loss_scale.state(),
        "batch": course.batch,
        "step": course.step,
        "skipped": course.skipped,
        "epochs": _dumped(course.epochs),
        "sessions": _dumped(course.sessions(ended, by_signal=by_signal)),
        "spent_s": dict(course.clock.spent_s()),
    }


def own_state(parts: Parts, course: Course) -> State:
    """What a checkpoint holds of this rank alone."""
    return {
        "loader": parts.training.state().to_dict(),
        "reduction": _reduction(parts),
        "buffers": dict(parts.model.named_buffers()),
        "cpu_random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None,
        "losses": list(course.losses),
    }


def begin(parts: Parts, notes: Iterable[str] = (), lease: Lease | None = None) -> Course:
    """The course of a run that starts; `notes` say why, where it might have gone on, and `lease` who is at it."""
    course = Course(StepClock(parts.device), note="; ".join(notes))
    return _told_by(lease, course)


def resume(parts: Parts, saved: Saved, notes: Iterable[str] = (), lease: Lease | None = None) -> Course:
    """Bring model, optimizer and random states to where `saved` has them; the loader was made from it.

    A checkpoint of another number of processes has no part of this rank's own: it is at an epoch's end, where all
    ranks' statistics are the same, and random states begin anew.
    """
    shared, own = saved.shared, saved.own
    parts.model.load_state_dict(shared["model"] | (own["buffers"] if own else {}))
    parts.optimizer.load_state_dict(shared["optimizer"])
    parts.loss_scale.restore(shared["loss_scale"])
    if own is not None:
        torch.set_rng_state(own["cpu_random"])
        if own["cuda_random"] is not None:
            torch.cuda.set_rng_state(own["cuda_random"], parts.device)
    course = Course(
        StepClock(parts.device, shared["spent_s"]),
        batch=shared["batch"],
        step=shared["step"],
        skipped=shared["skipped"],
        losses=list(own["losses"]) if own else [],
        epochs=[Epoch.model_validate(epoch) for epoch in shared["epochs"]],
        earlier=tuple(Session.model_validate(session) for session in shared["sessions"]),
        from_step=shared["step"],
        note="; ".join([*notes, *_other_buckets(parts, saved)]),
    )
    return _told_by(lease, course)


def _told_by(lease: Lease | None, course: Course) -> Course:
    """With what the lease knows: which start this is, and which earlier ones left no checkpoint to be known by."""
    if lease is None:
        return course
    known = {session.start for session in course.earlier}
    silent = [
        Session.model_validate(
            {
                "started": start.started,
                "from_step": course.from_step,
                "to_step": course.from_step,
                "note": "ended before its first checkpoint",
                "wall_s": 0,
                "ended": "running",
                **_told_of(start),
            }
        )
        for start in lease.silent
        if start.start not in known
    ]
    return replace(course, start=lease.holder, earlier=(*course.earlier, *silent))


def _other_buckets(parts: Parts, saved: Saved) -> list[str]:
    """A note where the run can't go on bit for bit, as after an update of torch, or with another tuning."""
    if saved.own is None or saved.own.get("reduction") == _reduction(parts):
        return []
    return ["gradients are summed in another way than before: the last bits may differ from an undisturbed run's"]


def _reduction(parts: Parts) -> dict[str, Any]:
    """What decides the order of sums: elements of every bucket, and the arrangement by size."""
    if (state := parts.reduce_state) is None:
        return {}
    chosen = state.settings.model_dump(mode="json", include={"algorithm", "choices", "wire"})
    return {"buckets": state.layout, **chosen}


def _dumped(records: Iterable[Epoch | Session]) -> list[dict[str, Any]]:
    return [record.model_dump() for record in records]
