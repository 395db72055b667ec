"""Who holds a lease, and whether they are still at work."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from fourminutes.comm.slurm import NoAnswer, look_up, own_job
from fourminutes.record import Record

# Longer than file systems keep what they know of a file's age, and than a holder is ever held up.
OLD_S = 90.0


class Start(Record):
    """One start of a run."""

    start: str = Field(description="its name, drawn at random")
    started: str = Field(description="UTC, ISO 8601")
    host: str
    process: int = Field(description="process that holds the lease")
    born: int | None = Field(description="when the kernel began that process, in its ticks; null where it says nothing")
    job: str | None = Field(description="id of its Slurm job; null outside of one")
    restarts: int | None = Field(
        None, description="how often Slurm had put that job back into the queue; null where it did not say"
    )

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


class Aging:
    """How long a lease has not been renewed, as this process sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._renewed_ns: int | None = None
        self._since_s = time.monotonic()

    @property
    def unchanged_s(self) -> float:
        """Time, by this process's own clock, in which no look has found it renewed; 0 at the first."""
        with suppress(OSError):
            now_ns = self.path.stat().st_mtime_ns
            if now_ns != self._renewed_ns:
                self._renewed_ns, self._since_s = now_ns, time.monotonic()
        return time.monotonic() - self._since_s

    @property
    def is_old(self) -> bool:
        """Whether nobody renews it, by the file's own age where that says so at once."""
        return self.unchanged_s >= OLD_S or age_s(self.path) >= OLD_S


def lives(lease: Lease | None, aging: Aging) -> bool:
    """Whether whoever wrote it is at work."""
    if lease is None:
        return not aging.is_old
    if lease.has_failed:
        return False
    holder = lease.holder
    if holder.job is not None and (answer := _lives_by_slurm(holder, aging)) is not None:
        return answer
    if holder.host == platform.node() and holder.born is not None:
        return born(holder.process) == holder.born
    return not aging.is_old


def _lives_by_slurm(holder: Start, aging: Aging) -> bool | None:
    """By what Slurm says of its job; None where that decides nothing."""
    assert holder.job is not None
    try:
        state = look_up(holder.job)
    except NoAnswer:
        return None
    if state is None or not state.is_living:
        return False
    if holder.restarts is not None and state.restarts != holder.restarts:
        return False
    if holder.job == own_job():
        return None  # two starts in one job: by their processes
    # The job may go on with other work after the start has died. What was suspended may not have come round yet, so
    # that the file's own age says nothing.
    return state.state == "SUSPENDED" or aging.unchanged_s < OLD_S


def age_s(path: Path) -> float:
    """Time since it was renewed, by the clock of the file system alone; 0 where it cannot be told."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return OLD_S
    except OSError:
        return 0.0


def born(process: int) -> int | None:
    """When the kernel began a process here, in ticks since the boot; None where there is none such."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] != "Z" else None
