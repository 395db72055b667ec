"""Where a record comes from: code, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import Field

from fourminutes.record.base import Record

_PACKAGES = ("fourminutes", "torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pillow", "snakemake")


class Provenance(Record):
    """Code, versions and machine of whatever wrote the record."""

    written: str = Field(description="UTC, ISO 8601")
    command: str
    git_commit: str | None = Field(description="null outside a clone")
    git_dirty: bool | None = Field(description="whether tracked files differed from that commit")
    versions: dict[str, str]
    host: str
    cpu: str
    cpu_cores: int = Field(description="that this process may use")
    memory_gib: float


def provenance() -> Provenance:
    """The provenance of a record written now by this process."""
    commit, is_dirty = code()
    return Provenance(
        written=utc_now(),
        command=shlex.join([_program(), *sys.argv[1:]]),
        git_commit=commit,
        git_dirty=is_dirty,
        versions={"python": platform.python_version(), **_package_versions()},
        host=platform.node(),
        cpu=_cpu_name(),
        cpu_cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    )


@cache
def code() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the clone, as they are when this is first asked for; None outside a clone.

    Whoever works for long asks at the start: what is checked out meanwhile is not what runs.
    """
    return _git("rev-parse", "HEAD"), _is_dirty()


def utc_now() -> str:
    """The time now, in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _program() -> str:
    """What was called, without the folder that it lies in; `python -m fourminutes` is the same command."""
    name = Path(sys.argv[0]).name
    return "fourminutes" if name == "__main__.py" else name


def _package_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _is_dirty() -> bool | None:
    # Results are no code, though they lie beside it: a run's record must not make the next run's code look changed.
    made = (":(top,exclude)results", ":(top,exclude)dvc.lock")
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *made)
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    """What git says in the project's folder; None where there is no git or no clone."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
