"""Where the members of a tar lie, from its headers alone: a tar inside a tar is read where it is."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fourminutes.errors import UserError

_BLOCK = tarfile.BLOCKSIZE  # bytes; headers are one block, contents are padded to whole blocks
_END = bytes(_BLOCK)
_PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True)
class Region:
    """A stretch of a file that holds a whole tar."""

    descriptor: int
    """Open for reading; read by position only, so threads may share it."""
    start: int
    """First byte, in bytes from the start of the file."""
    end: int
    """One past the last byte."""
    name: str
    """What messages call it."""

    def block(self, position: int) -> bytes:
        """The header block at `position`, short where the region ends."""
        return os.pread(self.descriptor, min(_BLOCK, max(0, self.end - position)), position)


@dataclass(frozen=True)
class Members:
    """The regular files of a tar, in its order; all three lists are of the same length."""

    names: list[str]
    offsets: list[int]
    """First byte of the contents, in bytes from the start of the file that the region is in."""
    lengths: list[int]
    """Bytes."""


@contextmanager
def opened_tar(path: Path) -> Iterator[Region]:
    """Open the tar at `path` as one region, and tell the system that reads will jump.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from error
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield Region(descriptor, 0, os.fstat(descriptor).st_size, str(path))
    finally:
        os.close(descriptor)


def list_members(region: Region) -> Members:
    """List the regular files of the tar in `region`, reading one header block a member.

    Folders are left out and a leading ``./`` is dropped. The plain headers of the ustar and GNU forms are read here; a
    tar with extended headers (pax, or GNU's long names and sizes) is left to the standard library from its start.

    Raises:
        UserError: the tar is truncated or damaged, or holds a link, a device, or a path that leads outside it.
    """
    plain = _list_plain(region)
    return _list_any(region) if plain is None else plain


def _list_plain(region: Region) -> Members | None:
    """The members of a tar without extended headers; None where it has some."""
    members = Members([], [], [])
    position, name = region.start, ""
    while (header := region.block(position)) != _END:
        _check_header(header, region, name)
        kind, size = header[156:157], header[124:136]
        if kind in b"xgLKSXV" or size[0] & 0x80:
            return None
        name, length = _plain_name(header), int(size.rstrip(b" \0") or b"0", 8)
        _add(members, region, _Member(name, kind, position + _BLOCK, length))
        position += _BLOCK + _padded(length)
    return members


def _list_any(region: Region) -> Members:
    """The members of any tar, by the standard library."""
    members = Members([], [], [])
    name = ""
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Window(region), _BLOCK), mode="r:") as archive:
            for entry in archive:
                name = entry.name
                kind = tarfile.GNUTYPE_SPARSE if entry.issparse() else entry.type
                _add(members, region, _Member(name, kind, region.start + entry.offset_data, entry.size))
                archive.members = []  # or the library keeps every entry
            end = archive.offset
    except tarfile.TarError as error:
        raise _damaged(region, name, str(error)) from error
    _check_end(region, region.start + end, name)
    return members
