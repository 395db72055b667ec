"""Stopping together: what one rank notices, all act on after the same step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from fourminutes.train.ranks import Ranks

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Take SIGTERM, SIGINT and SIGUSR1 as the wish to stop; gives a function that says which came first (0: none)."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopBoard:
    """Agrees on whether any rank was asked to stop, and by which signal.

    With several ranks the answer is that of the step before: the exchange runs behind a step's computing, where it
    costs nothing, and every rank still hears the same after the same step. Only before something durable is written
    do they wait for one another.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def exchange(self, asked: int, *, is_durable: bool) -> int:
        """Post by which signal this rank was `asked` to stop (0: by none); returns that of any rank, the highest.

        This step's answers are among them where the step `is_durable` (the same on all ranks), or is to be the last.
        """
        if self._ranks.group is None:
            return asked
        heard = self._settle()
        self._flag = torch.tensor([asked], dtype=torch.int32)
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._ranks.group, async_op=True)
        return (self._settle() or heard) if is_durable or heard else 0

    def _settle(self) -> int:
        """Wait for the exchange under way; returns what it brought."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._flag)
