"""One start of a run at a time: a small file that says who is at it, kept young while they are.

A second start waits, or ends at once, as long as the first one lives: its Slurm job runs (squeue says so), its process
is on this machine, or its lease is young. One that ended without a word is taken over from at once where that can be
known. Should the first one live after all, as on a node that only Slurm cannot reach, it finds that the lease is no
longer its own, at the latest before it would let a checkpoint count, and ends.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fourminutes.comm.slurm import NoAnswer, cancel_if_pending, look_up, own_job
from fourminutes.errors import Interrupted, RunFailed, UserError
from fourminutes.files import clear_write_errors
from fourminutes.record import Record, utc_now, write_record

LEASE = "FOURMINUTES_LEASE"
"""The environment variable by which processes know that whoever started them holds the lease, and as which start."""

RENEW_S = 10.0
# Longer than file systems keep what they know of a file's age, and than a holder is ever held up.
_OLD_S = 90.0
_LOOK_EVERY_S = 5.0
_SAY_EVERY_S = 600.0


class Start(Record):
    """One start of a run."""

    start: str = Field(description="its name, drawn at random")
    started: str = Field(description="UTC, ISO 8601")
    host: str
    process: int = Field(description="process that holds the lease")
    born: int | None = Field(description="when the kernel began that process, in its ticks; null where it says nothing")
    job: str | None = Field(description="id of its Slurm job; null outside of one")
    restarts: int = Field(0, description="how often Slurm had put that job back into the queue")

    @property
    def words(self) -> str:
        """Who that is, for a reader."""
        job = f"job {self.job} on " if self.job else f"process {self.process} on "
        return f"{job}{self.host}, since {self.started}"


class Lease(Record):
    """What the file says."""

    holder: Start
    losses: int = Field(0, description="starts in a row before the next one that ended since a process was lost")
    silent: tuple[Start, ...] = Field((), description="earlier starts that left no last word, the oldest first")
    has_failed: bool = Field(False, description="the holder has ended, by a failure")


@dataclass
class Held:
    """A lease that this process, or the one that started it, holds.

    Attributes:
        path: its file.
        start: which start of the run this is.
        began: what the lease said at first.
        stays: whether it is left when this start ends, for the next one.
    """

    path: Path
    start: str
    began: Lease
    stays: bool = False

    def require(self) -> None:
        """Make sure that no other start has taken over.

        Raises:
            RunFailed: one has.
        """
        if (by := self._taken_by()) is not None:
            raise RunFailed(f"{self.path}: another start of this run has taken over ({by.words}); this one ends")

    def leave(self, *, losses: int) -> None:
        """The job goes back into the queue: leave that to be known, and how many starts in a row lost a process."""
        write_record(self.path, self.began.model_copy(update={"losses": losses}))
        self.stays = True

    def fail(self) -> None:
        """Nobody is at it any more; leave what is to be told."""
        if self._taken_by() is None:
            with suppress(UserError, OSError):
                write_record(self.path, self.began.model_copy(update={"has_failed": True}))
        self.stays = True

    def release(self) -> None:
        """Nobody is at it any more, and nothing is left to tell."""
        if not self.stays and self._taken_by() is None:
            self.path.unlink(missing_ok=True)

    def renew(self) -> bool:
        """Keep it young; False where it is no longer this start's."""
        if self._taken_by() is not None:
            return False
        with suppress(OSError):
            os.utime(self.path)
        return True

    def _taken_by(self) -> Start | None:
        """Another start that holds it; a file that is gone, or out of reach for a while, tells of none."""
        now = _read(self.path)
        return now.holder if now is not None and now.holder.start != self.start else None


@contextmanager
def held(path: Path, *, waits: bool, on_taken: Callable[[], None] | None = None) -> Iterator[Held]:
    """Hold the lease for the length of the block, or use that of whoever started this process.

    It is released at the end. After a failure, and an end without a word, it tells the next start of this one.

    Args:
        path: its file.
        waits: whether to wait for another start that lives; of one whose job stands in the queue again, this start
            then takes the place, and the job is cancelled.
        on_taken: is called, in another thread and once, when another start has taken over.

    Raises:
        UserError: another start lives, and this one does not wait; or the file cannot be written.
    """
    given = os.environ.get(LEASE)
    if given is not None and (lease := _read(path)) is not None and lease.holder.start == given:
        yield Held(path, given, lease)
        return
    lease = _acquired(path, waits=waits)
    own = Held(path, lease.holder.start, lease)
    over = threading.Event()
    threading.Thread(target=_keep, args=(own, over, on_taken), name="lease", daemon=True).start()
    try:
        yield own
    except (Interrupted, UserError):
        own.release()
        raise
    except Exception:
        own.fail()
        raise
    else:
        own.release()
    finally:
        over.set()


def _keep(own: Held, over: threading.Event, on_taken: Callable[[], None] | None) -> None:
    while not over.wait(RENEW_S):
        if not own.renew():
            if on_taken is not None:
                on_taken()
            return


def _acquired(path: Path, *, waits: bool) -> Lease:
    """The lease as this start's own."""
    said_s = -_SAY_EVERY_S
    while True:
        before = _read(path)
        if path.exists() and _lives(path, before):
            who = before.holder.words if before else "another start"
            if not waits:
                raise UserError(f"{path}: {who} is at this run; wait until it has ended, or end it first")
            if time.monotonic() - said_s >= _SAY_EVERY_S:
                said_s = time.monotonic()
                print(f"fourminutes: {who} is at this run; waiting for it", file=sys.stderr, flush=True)
            time.sleep(_LOOK_EVERY_S)
            continue
        lease = _next(before)
        if _placed(path, lease, is_new=not path.exists()):
            if waits and before is not None:
                _withdraw(before.holder)
            return lease


def _withdraw(holder: Start) -> None:
    """Cancel the job of an earlier start, where it stands in the queue again to do what this one does now."""
    with suppress(NoAnswer):
        if holder.job is not None and holder.job != own_job() and cancel_if_pending(holder.job):
            print(f"fourminutes: job {holder.job}, in the queue again for this run, is cancelled", file=sys.stderr)


def _next(before: Lease | None) -> Lease:
    """The lease of this process, after `before`, which ended without a word (None: there is none)."""
    job = own_job()
    restarts = 0
    if job is not None:
        with suppress(NoAnswer):
            state = look_up(job)
            restarts = state.restarts if state else 0
    start = Start(
        start=secrets.token_hex(4),
        started=utc_now(),
        host=platform.node(),
        process=os.getpid(),
        born=_born(os.getpid()),
        job=job,
        restarts=restarts,
    )
    if before is None:
        return Lease(holder=start)
    is_same_job = before.holder.job is not None and before.holder.job == job
    losses = before.losses if is_same_job else 0
    return Lease(holder=start, losses=losses, silent=(*before.silent, before.holder))


def _placed(path: Path, lease: Lease, *, is_new: bool) -> bool:
    """Whether the file is this start's now: where there is none yet, only one start can make it."""
    if is_new:
        with clear_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = path.open("x")
            except FileExistsError:
                return False
            with file:
                file.write(lease.model_dump_json(indent=1))
        return True
    write_record(path, lease)
    now = _read(path)  # two may have found the same one ended; the later stays
    return now is not None and now.holder.start == lease.holder.start


def _read(path: Path) -> Lease | None:
    """What the file says; None where it is not there, or not whole (yet)."""
    try:
        return Lease.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _lives(path: Path, lease: Lease | None) -> bool:
    """Whether whoever wrote it is at work."""
    if lease is None:
        return _age_s(path) < _OLD_S
    if lease.has_failed:
        return False
    holder = lease.holder
    if holder.job is not None and (answer := _lives_by_slurm(path, holder)) is not None:
        return answer
    if holder.host == platform.node():
        return _born(holder.process) == holder.born if holder.born is not None else _age_s(path) < _OLD_S
    return _age_s(path) < _OLD_S


def _lives_by_slurm(path: Path, holder: Start) -> bool | None:
    """By what Slurm says of its job; None where that decides nothing."""
    assert holder.job is not None
    try:
        state = look_up(holder.job)
    except NoAnswer:
        return None
    if state is None or not state.is_living or state.restarts != holder.restarts:
        return False
    if holder.job == own_job():
        return None  # two starts in one job: by their processes
    # The job may go on with other work after the start has died.
    return state.state == "SUSPENDED" or _age_s(path) < _OLD_S


def _age_s(path: Path) -> float:
    """Time since it was renewed, by the clock of the file system alone; 0 where it cannot be told."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return _OLD_S
    except OSError:
        return 0.0


def _born(process: int) -> int | None:
    """When the kernel began a process here, in ticks since the boot; None where there is none such."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] != "Z" else None
