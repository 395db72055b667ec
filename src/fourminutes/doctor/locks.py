"""File locks, which some network file systems lack; `python -m fourminutes.doctor.locks FOLDER` tries them.

DVC locks its folder by one. Where that fails, it can do with hard links instead, if it is told so.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import sys
import tempfile
from pathlib import Path

from fourminutes.doctor.finding import Finding, Findings
from fourminutes.doctor.probe import ask

_LIMIT_S = 15
_DVC_SETTING = ("dvc", "config", "--local", "core.hardlink_lock", "true")


def look_at_locks(clone: Path, *, fix: bool) -> list[Finding]:
    """Whether file locks work where DVC wants them, and if not, whether DVC knows.

    Args:
        clone: the project's folder.
        fix: whether DVC is told where it does not know yet.
    """
    if not os.access(clone, os.W_OK):
        return []  # which is told by who looks at room
    tried = ask(sys.executable, "-m", __name__, str(clone), limit_s=_LIMIT_S)
    return lock_findings(clone, "" if tried.is_good else tried.complaint, fix=fix)


def lock_findings(clone: Path, fault: str, *, fix: bool) -> list[Finding]:
    """What follows from `fault`, the complaint of a lock; empty where locks work. See `look_at_locks`."""
    findings = Findings("file systems")
    if not fault:
        findings.add("ok", "file locks", f"{clone}: flock and lockf work")
    elif _uses_hard_links(clone):
        findings.add("ok", "file locks", f"{clone}: {fault}; DVC uses hard links instead (core.hardlink_lock)")
    else:
        dvc = str(Path(sys.executable).with_name("dvc"))
        told = ask(dvc, *_DVC_SETTING[1:], folder=clone) if fix else None
        if told and told.is_good:
            findings.add("note", "file locks", f"{clone}: {fault}; DVC now uses hard links (core.hardlink_lock is set)")
        else:
            why = f" ({told.complaint})" if told else ""
            to_do = f"`{' '.join(_DVC_SETTING)}`, or this with --fix{why}"
            findings.add("warn", "file locks", f"{clone}: {fault}; DVC needs them", to_do)
    return findings.all


def _uses_hard_links(clone: Path) -> bool:
    """Whether DVC is told to lock by hard links."""
    settings = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        settings.read([clone / ".dvc" / "config", clone / ".dvc" / "config.local"])
        return settings.getboolean("core", "hardlink_lock", fallback=False)
    except (configparser.Error, ValueError):
        return False


def _try_locks(folder: Path) -> None:
    """Take both kinds of lock on a file of our own.

    Raises:
        SystemExit: one is refused; says which.
    """
    with tempfile.NamedTemporaryFile(prefix=".fourminutes-doctor-", dir=folder) as file:
        for name, lock in (("flock", fcntl.flock), ("lockf", fcntl.lockf)):
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock(file, fcntl.LOCK_UN)
            except OSError as error:
                sys.exit(f"{name} fails: {error.strerror}")


if __name__ == "__main__":
    try:
        _try_locks(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(f"no file can be made: {error.strerror}")
