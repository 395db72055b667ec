"""Where the members of a tar lie, from its headers alone: a tar inside a tar is read where it is."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fourminutes.errors import UserError

_BLOCK = tarfile.BLOCKSIZE  # bytes; a header is one block, contents are padded to whole blocks
_PAGE = 4096  # bytes; the least that a disk gives
_MANY_PAGES = 16 * _PAGE
_END_MARKER = bytes(_BLOCK)
_EXTENDED = b"xgXLKSVN"  # pax headers; GNU's long names and links, sparse files, volume labels
_BINARY_SIZE = 0x80  # first byte of a size that is no octal number
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True)
class Region:
    """A stretch of an open file that holds a whole tar."""

    descriptor: int
    """Read by position only, so that threads may share it."""
    start: int
    """First byte of the tar, counted from the start of the file."""
    end: int
    """One past its last byte."""
    name: str
    """What messages call it."""

    def read(self, position: int, size: int) -> bytes:
        """At most `size` bytes from `position` of the file; fewer where the region ends."""
        return os.pread(self.descriptor, max(0, min(size, self.end - position)), position)


@dataclass(frozen=True)
class Members:
    """The regular files of a tar in its order; the three lists are equally long."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """First byte of the contents, counted from the start of the file that the region is in."""
    lengths: list[int] = field(default_factory=list)
    """Bytes."""


@contextmanager
def opened_tar(path: Path) -> Iterator[Region]:
    """Open the file at `path` as one region.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    try:
        # Headers lie far apart: reading ahead would fetch the pictures as well.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield Region(descriptor, 0, os.fstat(descriptor).st_size, str(path))
    finally:
        os.close(descriptor)


def list_members(region: Region) -> Members:
    """List the regular files of the tar in `region`, reading one block a member.

    Folders are left out and a leading ``./`` is dropped. Plain ustar and GNU headers are read here, since the standard
    library takes several times as long for a million of them; a tar with extended headers is left to the library.

    Raises:
        UserError: the tar is truncated or damaged, or holds a link, a device, or a path that leads out of it.
    """
    plain = _list_plain(region)
    return _list_extended(region) if plain is None else plain


def first_member(region: Region) -> str:
    """The name of the tar's first regular file; of what else it holds, only the end is looked at.

    Raises:
        UserError: the region is no tar, holds no file, or its end marker is missing.
    """
    nothing = Members()
    try:
        with tarfile.open(fileobj=_File(region), mode="r:", encoding="utf-8", errors="replace") as archive:
            name = next(entry.name for entry in archive if entry.isfile())
    except (tarfile.TarError, ValueError, StopIteration) as error:
        raise _damaged(region, nothing) from error
    if (region.end - region.start) % _BLOCK or region.read(region.end - _BLOCK, _BLOCK) != _END_MARKER:
        raise UserError(f"{region.name}: is truncated: its end marker is missing; download it again")
    return name


def _list_plain(region: Region) -> Members | None:
    """The members of a tar without extended headers; None where it has some."""
    members = Members()
    headers = _Headers(region)
    position = region.start
    while (header := headers.at(position)) != _END_MARKER:
        if len(header) < _BLOCK:
            raise _truncated(region, members)
        kind, size = header[156:157], header[124:136]
        if kind in _EXTENDED or size[0] & _BINARY_SIZE:
            return None
        length = _octal(size)
        if length is None or not _checksum_agrees(header):
            raise _damaged(region, members)
        _add(members, region, _plain_name(header), kind, position + _BLOCK, length)
        position += _BLOCK + -(-length // _BLOCK) * _BLOCK
    return members


def _list_extended(region: Region) -> Members:
    """The members of any tar, by the standard library."""
    members = Members()
    try:
        with tarfile.open(fileobj=_File(region), mode="r:", encoding="utf-8", errors="replace") as archive:
            for entry in archive:
                kind = tarfile.GNUTYPE_SPARSE if entry.issparse() else entry.type
                _add(members, region, entry.name, kind, region.start + entry.offset_data, entry.size)
            end = region.start + archive.offset
    except (tarfile.TarError, ValueError) as error:
        raise _damaged(region, members) from error
    # The library takes a missing end marker, or a damaged header, for the end.
    if region.read(end, _BLOCK) != _END_MARKER:
        raise _truncated(region, members) if end + _BLOCK > region.end else _damaged(region, members)
    return members


class _Headers:
    """Reads header blocks: one page for each, or many at once where members are so small that headers lie close."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._data = b""
        self._start = self._last = region.start

    def at(self, position: int) -> bytes:
        """The block at `position`; positions rise from call to call."""
        first = position - self._start
        if first + _BLOCK > len(self._data):
            near = 0 < position - self._last < _PAGE
            self._data = self._region.read(position, _MANY_PAGES if near else _PAGE)
            self._start, first = position, 0
        self._last = position
        return self._data[first : first + _BLOCK]


class _File(io.RawIOBase):
    """A region as a file of its own, for the standard library."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._position = region.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position - self._region.start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: self._region.start, io.SEEK_CUR: self._position, io.SEEK_END: self._region.end}
        self._position = origin[whence] + offset
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        wanted = size if size >= 0 else self._region.end - self._position
        data = self._region.read(self._position, wanted)
        self._position += len(data)
        return data


def _checksum_agrees(header: bytes) -> bool:
    """Whether the header's sum is the one it names, with the sum's own field counted as blanks."""
    stated = header[148:156]
    return sum(header) - sum(stated) + 8 * ord(" ") == _octal(stated)


def _octal(digits: bytes) -> int | None:
    """The number in a header's field; None where it is none. The zero in front makes signs an error."""
    try:
        return int(b"0" + digits.strip(b" \0"), 8)
    except ValueError:
        return None


def _plain_name(header: bytes) -> str:
    """The member's path; only the POSIX form (whose magic ends in NUL) has a prefix."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode(errors="replace")


def _add(members: Members, region: Region, name: str, kind: bytes, offset: int, length: int) -> None:
    """Append one regular file to `members`; refuse what has no place in an archive of pictures."""
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        raise UserError(f"{region.name}: member {name} leads out of the archive; pack it again with relative paths")
    if kind == tarfile.DIRTYPE or name.endswith("/"):
        return
    if kind not in _FILES:
        raise UserError(f"{region.name}: member {name} is a link, a device or the like; pack it again with files alone")
    if offset + length > region.end:
        raise UserError(f"{region.name}: is truncated in member {name}; copy or download it again")
    members.names.append(name.removeprefix("./"))
    members.offsets.append(offset)
    members.lengths.append(length)


def _truncated(region: Region, members: Members) -> UserError:
    return UserError(f"{region.name}: is truncated {_place(members)}: its end marker is missing; download it again")


def _damaged(region: Region, members: Members) -> UserError:
    return UserError(f"{region.name}: is no tar, or is damaged, {_place(members)}; copy or download it again")


def _place(members: Members) -> str:
    return f"after member {members.names[-1]}" if members.names else "at its start"
