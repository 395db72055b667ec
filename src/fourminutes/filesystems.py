"""Which file system a path lies on, and what is known of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system."""

    point: Path
    """Where it is mounted."""
    kind: str
    """Such as ``ext4``, ``nfs4`` or ``lustre``; empty where nothing is known."""


def file_system(path: Path) -> Mount:
    """The file system that `path` lies on, with links followed; of a path that is not there yet, that of its folder."""
    try:
        return mount_of(path.resolve(), _MOUNTINFO.read_text())
    except OSError:
        return Mount(Path("/"), "")


def mount_of(path: Path, mountinfo: str) -> Mount:
    """The mount that holds the absolute `path`: that of the longest mount point, of equal ones the last.

    Args:
        path: without links.
        mountinfo: text in the form of ``/proc/self/mountinfo``; see proc(5).
    """
    found = Mount(Path("/"), "")
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 6:
            continue
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= len(found.point.parts):
            found = Mount(point, after.split(" ")[0])
    return found


def maps_safely(path: Path) -> bool:
    """Whether a file may be read by mapping it into memory.

    On Lustre it had better not be: as DALI's documentation has it, mapping pays on local disks but not over a network.
    And where a page cannot be had, the process is ended by SIGBUS, while a read would have waited or failed.
    """
    return file_system(path).kind != "lustre"
