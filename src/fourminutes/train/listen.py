"""Being told how a run goes: what the loop says, whoever listens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from fourminutes.comm.trace import Span
from fourminutes.record import Epoch

RunStatus = Literal["success", "aborted"]


@dataclass(frozen=True)
class StepNews:
    """What one global batch brought.

    Attributes:
        step: optimizer steps taken so far, from the start of the run.
        batch: global batches consumed so far; more than `step` where overflows skipped steps.
        loss: mean loss of this batch before the step, in nats.
        rate: learning rate of the step.
        loss_scale: factor on the loss from here on; None without one.
        skipped: whether the step was skipped for an overflow.
    """

    step: int
    batch: int
    loss: float
    rate: float
    loss_scale: float | None
    skipped: bool


class Listener:
    """Hears everything and does nothing; a listener overrides what it cares for.

    The order is ``run_begins``, then for every epoch ``epoch_begins``, its steps, ``evaluation_begins``,
    ``epoch_ends``, then ``run_ends``, then ``close``. A run that goes on from a checkpoint begins again with the epoch
    under way. One that is interrupted doesn't end, and is closed.
    """

    def run_begins(self) -> None:
        """Everything is set up; the training data are touched from here on."""

    def epoch_begins(self, epoch: int) -> None:
        """Epoch number `epoch`, counted from 1, begins or goes on."""

    def step(self, news: StepNews) -> None:
        """One more global batch is done."""

    def reduction_traced(self, spans_by_rank: Sequence[Sequence[Span]]) -> None:
        """The way of every bucket, on every rank, through the step that is to be heard of next."""

    def evaluation_begins(self, epoch: int) -> None:
        """All batches of epoch number `epoch` are done."""

    def epoch_ends(self, epoch: Epoch) -> None:
        """One more epoch is done and evaluated."""

    def run_ends(self, status: RunStatus) -> None:
        """The last epoch is done, or the run is given up."""

    def close(self) -> None:
        """Nothing more will be said; let go of files."""


class Listeners(Listener):
    """Tells several listeners, one after the other."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)

    def run_begins(self) -> None:
        """See `Listener`; so for all below."""
        for listener in self._listeners:
            listener.run_begins()

    def epoch_begins(self, epoch: int) -> None:
        """To all."""
        for listener in self._listeners:
            listener.epoch_begins(epoch)

    def step(self, news: StepNews) -> None:
        """To all."""
        for listener in self._listeners:
            listener.step(news)

    def reduction_traced(self, spans_by_rank: Sequence[Sequence[Span]]) -> None:
        """To all."""
        for listener in self._listeners:
            listener.reduction_traced(spans_by_rank)

    def evaluation_begins(self, epoch: int) -> None:
        """To all."""
        for listener in self._listeners:
            listener.evaluation_begins(epoch)

    def epoch_ends(self, epoch: Epoch) -> None:
        """To all."""
        for listener in self._listeners:
            listener.epoch_ends(epoch)

    def run_ends(self, status: RunStatus) -> None:
        """To all."""
        for listener in self._listeners:
            listener.run_ends(status)

    def close(self) -> None:
        """To all, the last one first, even where one of them fails."""
        with ExitStack() as stack:
            for listener in self._listeners:
                stack.callback(listener.close)
