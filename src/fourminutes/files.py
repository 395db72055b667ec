"""Writing files so that a reader sees either the whole new file or the old one."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fourminutes.errors import UserError

_WAY_OUT = {
    errno.ENOSPC: "the disk is full; free space there or choose another folder",
    errno.EDQUOT: "the quota is used up; free space there or choose another folder",
    errno.EACCES: "permission denied; choose a folder that you can write to",
    errno.EPERM: "permission denied; choose a folder that you can write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file is in the way of a folder of that name; choose another folder",
    errno.EISDIR: "a folder is in the way of a file of that name; choose another name",
}


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _umask()  # now, before there are threads whose files would be open to all in between


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into a `UserError` that says what to do."""
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT.get(error.errno or 0)
        if way_out is None or not _concerns(error, path):
            raise
        raise UserError(f"{path}: cannot be written: {way_out}") from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about `path` or a folder above it, and not about what was read to write it."""
    return error.filename is None or Path(error.filename) == path or Path(error.filename).parent in path.parents


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success sync it and rename it to `path`.

    Readers never see a half-written file, whatever the moment of a crash. The temporary name starts with a dot
    and ends in ``.partial``; it holds a lock while its writer lives, so what a killed writer left is told from
    what another is writing, and is removed by the next writer of the same name.

    Raises:
        UserError: the folder cannot be written, or its disk is full.
    """
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        aside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _lock(file.fileno())
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_UMASK)
                os.fsync(file.fileno())
                aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with written_aside(path) as file:
        file.write(text.encode())


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose writers are gone."""
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        try:
            with leftover.open("rb") as file:
                if _lock(file.fileno()):
                    leftover.unlink(missing_ok=True)
        except OSError:
            continue


def _lock(descriptor: int) -> bool:
    """Take the file's lock; False where another process holds it (or locks don't exist here)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
