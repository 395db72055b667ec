"""Writing checkpoints beside the training, which waits only until its state is copied."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self, TypeVar

from fourminutes.errors import UserError
from fourminutes.record.base import write_record
from fourminutes.train.checkpoint import (
    BEST,
    MARKER,
    SHARED,
    Marker,
    State,
    drop_older,
    home_of,
    rank_file,
    save_weights,
    write_state,
)
from fourminutes.train.ranks import Ranks
from fourminutes.train.snapshot import Snapshots

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Taken:
    """A checkpoint to be written: its states, by file name, and what they are."""

    step: int
    states: dict[str, State]
    at_epoch_end: bool
    is_best: bool


class CheckpointWriter:
    """Writes a run's checkpoints in a thread beside the training; a context, at whose end the last one is safe.

    To be made and used by all ranks alike. One checkpoint is under way at a time. The ranks' threads talk in a group
    of their own, and so never come between what the training says.

    Where an exception ends the block, what is under way is finished all the same, but only that exception is raised.
    Should a rank be gone, the threads of the others fail too, as soon as they notice or the group's time is up.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, require: Callable[[], None] = lambda: None) -> None:
        """Keep the newest `keep` checkpoints in `folder`, and beside them the newest of an epoch's end.

        `require` raises on rank 0 where no checkpoint may count any more, as when another start has taken over.
        """
        self._folder = folder
        self._ranks = ranks.twin()
        self._keep = keep
        self._require = require
        self._snapshots = Snapshots()
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
            return
        with suppress(Exception):
            self.wait()

    def save(self, step: int, *, shared: State, own: State, at_epoch_end: bool, is_best: bool) -> None:
        """Wait for the checkpoint before, copy the states, and leave the writing to the thread.

        Args:
            step: how far the run has come; it names the checkpoint, and grows from one to the next.
            shared: what is the same for all ranks, the weights as `model` among it; taken from rank 0.
            own: what is this rank's alone.
            at_epoch_end: an epoch is over, and `shared` is enough to begin the next one on any number of processes.
            is_best: the weights are the best so far, and become `best.pt`.

        Raises:
            UserError: the checkpoint before could not be written; raised on all ranks.
            TypeError: a state holds something that would not be read again.
        """
        self.wait()
        states = {rank_file(self._ranks.rank): own} | ({SHARED: shared} if self._ranks.is_first else {})
        taken = _Taken(step, self._snapshots.take(states), at_epoch_end, is_best)
        self._under_way = _beside(lambda: self._write(taken))

    def wait(self) -> None:
        """Return when what is under way is safe.

        Raises:
            UserError: a rank could not write; raised on all ranks, once. The checkpoints before are untouched.
        """
        if self._under_way is None:
            return
        failure = self._under_way.exception()
        self._under_way = None
        if failure is not None:
            raise failure

    def _write(self, taken: _Taken) -> None:
        """Write this rank's files; when all ranks' are there, rank 0 marks the checkpoint and drops older ones."""
        home = home_of(self._folder, taken.step)
        states = taken.states.items()
        written = _writing(home, lambda: {name: write_state(home / name, state) for name, state in states})
        sha256 = {name: digest for files in self._ranks.agreed(written) for name, digest in files.items()}
        marked = _writing(home, lambda: self._mark(taken, sha256)) if self._ranks.is_first else None
        self._ranks.agreed(marked)
        if self._ranks.is_first:
            drop_older(self._folder, taken.step, self._keep)

    def _mark(self, taken: _Taken, sha256: dict[str, str]) -> None:
        """Make the checkpoint count, after the best weights, so that it never tells of any that are not there."""
        self._require()
        if taken.is_best:
            save_weights(self._folder / BEST, taken.states[SHARED]["model"])
        marker = Marker(
            format=2,
            step=taken.step,
            world_size=self._ranks.world_size,
            at_epoch_end=taken.at_epoch_end,
            sha256=sha256,
        )
        write_record(home_of(self._folder, taken.step) / MARKER, marker)


def _beside(act: Callable[[], None]) -> Future[None]:
    """Let a thread do it. The thread is no reason for the process to stay: it may wait for ranks that are gone."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            act()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _writing(home: Path, write: Callable[[], Value]) -> Value | UserError:
    """What `write` returns; a failure is returned too, so that all ranks can hear of it."""
    try:
        return write()
    except UserError as error:
        return error
    except OSError as error:
        return UserError(
            f"{error.filename or home}: cannot be written: {error.strerror}; choose another folder for work"
        )
