"""How far a run has come: all that grows as it goes, and goes on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from fourminutes.record import Epoch, Session, utc_now
from fourminutes.train.accounting import StepClock
from fourminutes.train.checkpoint import Saved, State
from fourminutes.train.setup import Parts


@dataclass
class Course:
    """The course of a run up to now.

    Attributes:
        clock: where the epoch's time went so far.
        step: optimizer steps done since the start of the run.
        loss_sum: sum of this rank's losses over the steps of the epoch under way.
        epochs: finished epochs.
        earlier: sessions before this one.
        from_step: step at which this session began.
    """

    clock: StepClock
    step: int = 0
    loss_sum: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    earlier: tuple[Session, ...] = ()
    from_step: int = 0
    started: str = field(default_factory=utc_now)
    _started_s: float = field(default_factory=time.monotonic)

    def sessions(self, ended: str) -> tuple[Session, ...]:
        """All sessions, this one as ended in the given way."""
        this = Session.model_validate(
            {
                "started": self.started,
                "from_step": self.from_step,
                "to_step": self.step,
                "wall_s": time.monotonic() - self._started_s,
                "ended": ended,
            }
        )
        return (*self.earlier, this)


def shared_state(parts: Parts, course: Course, *, ended: str) -> State:
    """What a checkpoint holds once for all ranks."""
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "step": course.step,
        "epochs": _dumped(course.epochs),
        "sessions": _dumped(course.sessions(ended)),
        "spent_s": dict(course.clock.spent_s()),
    }


def own_state(parts: Parts, course: Course) -> State:
    """What a checkpoint holds of this rank alone."""
    return {
        "loader": parts.training.state().to_dict(),
        "buffers": dict(parts.model.named_buffers()),
        "cpu_random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None,
        "loss_sum": course.loss_sum,
    }


def begin(parts: Parts) -> Course:
    """The course of a run that starts."""
    return Course(StepClock(parts.device))


def resume(parts: Parts, saved: Saved) -> Course:
    """Bring model, optimizer and random states to where `saved` has them; the loader was made from it."""
    shared, own = saved.shared, saved.own
    parts.model.load_state_dict(shared["model"] | own["buffers"])
    parts.optimizer.load_state_dict(shared["optimizer"])
    torch.set_rng_state(own["cpu_random"])
    if own["cuda_random"] is not None:
        torch.cuda.set_rng_state(own["cuda_random"], parts.device)
    return Course(
        StepClock(parts.device, shared["spent_s"]),
        step=shared["step"],
        loss_sum=own["loss_sum"],
        epochs=[Epoch.model_validate(epoch) for epoch in shared["epochs"]],
        earlier=tuple(Session.model_validate(session) for session in shared["sessions"]),
        from_step=shared["step"],
    )


def _dumped(records: Iterable[Epoch | Session]) -> list[dict[str, Any]]:
    return [record.model_dump() for record in records]
