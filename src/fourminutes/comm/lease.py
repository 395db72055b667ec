"""One start of a run at a time: a small file that says who is at it, kept young while they are.

A second start waits, or ends at once, as long as the first one lives: its Slurm job runs (squeue says so) and its lease
is renewed, its process is on this machine, or, elsewhere, its lease is young. One that ended without a word is taken
over from at once where that can be known. Should the first one live after all, as on a node that only Slurm cannot
reach, it finds within seconds that the lease is no longer its own, at the latest before it would let a checkpoint
count, and ends.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fourminutes.comm.holder import OLD_S, Aging, Lease, Start, age_s, born, lives
from fourminutes.comm.slurm import NoAnswer, cancel_if_pending, look_up, own_job
from fourminutes.errors import Interrupted, RunFailed, UserError
from fourminutes.files import clear_write_errors
from fourminutes.record import utc_now, write_record

LEASE = "FOURMINUTES_LEASE"
"""The environment variable by which processes know that whoever started them holds the lease, and as which start."""

RENEW_S = 10.0
_LOOK_EVERY_S = 5.0
# Who claims a place has it within this.
_CLAIMED_FOR_S = 0.2
_SAY_EVERY_S = 600.0


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
        if self._taken_by() is None:
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
            for claim in self.path.parent.glob(f"{self.path.name}.*"):
                claim.unlink(missing_ok=True)
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
def held(path: Path, *, waits: bool) -> Iterator[Held]:
    """Hold the lease for the length of the block, or use that of whoever started this process.

    It is released at the end. After a failure, and an end without a word, it tells the next start of this one. Should
    another start take over meanwhile, this process is told to end, by SIGTERM.

    Args:
        path: its file.
        waits: whether to wait for another start that lives; of one whose job stands in the queue again, this start
            then takes the place, and the job is cancelled.

    Raises:
        UserError: another start lives, and this one does not wait; or the file cannot be written.
    """
    own = _given(path)
    is_given = own is not None
    own = own or _acquired(path, waits=waits)
    over = threading.Event()
    threading.Thread(target=_keep, args=(own, over), name="lease", daemon=True).start()
    if is_given:  # whoever gave it ends it
        try:
            yield own
        finally:
            over.set()
        return
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


def _given(path: Path) -> Held | None:
    """The lease as whoever started this process has handed it on; None where nobody has."""
    given = os.environ.get(LEASE)
    lease = _read(path) if given is not None else None
    return Held(path, lease.holder.start, lease) if lease is not None and lease.holder.start == given else None


def _keep(own: Held, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        if not own.renew():
            _end_this()
            return


def _end_this() -> None:
    """Another start has taken over: end as if told to."""
    print("fourminutes: another start of this run has taken over; this one ends", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _acquired(path: Path, *, waits: bool) -> Held:
    """The lease as this start's own."""
    start, aging = _this_start(), Aging(path)
    said_s = -_SAY_EVERY_S
    while True:
        before = _read(path)
        if path.exists() and lives(before, aging):
            who = before.holder.words if before else "another start"
            if not waits:
                raise UserError(f"{path}: {who} is at this run; wait until it has ended, or end it first")
            if time.monotonic() - said_s >= _SAY_EVERY_S:
                said_s = time.monotonic()
                print(f"fourminutes: {who} is at this run; waiting for it", file=sys.stderr, flush=True)
            time.sleep(_LOOK_EVERY_S)
        elif (lease := _taken_over(path, before, start)) is not None:
            if waits and before is not None:
                _withdraw(before.holder)
            return Held(path, start.start, lease)


def _withdraw(holder: Start) -> None:
    """Cancel the job of an earlier start, where it stands in the queue again to do what this one does now."""
    with suppress(NoAnswer):
        if holder.job is not None and holder.job != own_job() and cancel_if_pending(holder.job):
            print(f"fourminutes: job {holder.job}, in the queue again for this run, is cancelled", file=sys.stderr)


def _this_start() -> Start:
    job, restarts = own_job(), None
    if job is not None:
        with suppress(NoAnswer):
            restarts = state.restarts if (state := look_up(job)) else None
    return Start(
        start=secrets.token_hex(4),
        started=utc_now(),
        host=platform.node(),
        process=os.getpid(),
        born=born(os.getpid()),
        job=job,
        restarts=restarts,
    )


def _taken_over(path: Path, before: Lease | None, start: Start) -> Lease | None:
    """The lease of `start`, after that of `before`, which has ended; None where another start was faster.

    Of those that would follow one holder only one can make the file that claims its place, or the first lease.
    """
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if before is None and not path.exists():
            lease = Lease(holder=start)
            return lease if _made(path, lease.model_dump_json(indent=1)) else None
        claim = path.with_name(f"{path.name}.{before.holder.start if before else 'unreadable'}")
        if not _made(claim, ""):
            _drop_if_old(claim)
            time.sleep(_CLAIMED_FOR_S)
            return None
        if _read(path) != before or not path.exists():  # it was released meanwhile
            claim.unlink(missing_ok=True)
            return None
        lease = _after(before, start)
        write_record(path, lease)
        return lease


def _after(before: Lease | None, start: Start) -> Lease:
    """The lease of a start that follows one which left no last word; None: nobody knows which."""
    if before is None:
        return Lease(holder=start)
    is_same_job = before.holder.job is not None and before.holder.job == start.job
    losses = before.losses if is_same_job else 0
    return Lease(holder=start, losses=losses, silent=(*before.silent, before.holder))


def _made(path: Path, text: str) -> bool:
    """Whether this process has made the file; not, where it was there."""
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _drop_if_old(claim: Path) -> None:
    """Whoever made it died before the lease was its own."""
    if age_s(claim) >= OLD_S:
        claim.unlink(missing_ok=True)


def _read(path: Path) -> Lease | None:
    """What the file says; None where it is not there, or not whole (yet)."""
    try:
        return Lease.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
