"""Reading images in any order, with the disk asked in the order in which they lie.

Images come in blocks, laid out in memory as they will stand in the tar: what needs no conversion is then hashed and
written as it was read, in pieces of megabytes, without a copy and with hardly any Python between.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from fourminutes.data import wds
from fourminutes.data.index import ArchiveStamp, Image
from fourminutes.errors import UserError

_READERS = 2  # threads, so that one reads while the other waits
_BLOCK_BYTES = 2 * 2**20  # small enough for a processor's cache, large enough for few hand-overs between threads
_BUFFERS = 12  # blocks that are read, inspected, hashed or written at a time


@dataclass(frozen=True)
class Block:
    """Some images as they will stand in the tar."""

    images: Sequence[Image]
    places: Sequence[slice]
    """Of each image's bytes in `tar`."""
    tar: memoryview
    """Headers, images, padding and labels."""
    buffer: bytearray
    """The memory behind `tar`, to be given back."""


class Buffers:
    """Memory used again and again: touching new memory would cost more than reading into it."""

    def __init__(self) -> None:
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(bytearray())

    def take(self, size: int) -> bytearray:
        """A buffer of at least `size` bytes, once there is one."""
        buffer = self._free.get()
        return buffer if len(buffer) >= size else bytearray(max(size, _BLOCK_BYTES))

    def give_back(self, buffer: bytearray) -> None:
        """Let `buffer` be used again."""
        self._free.put(buffer)


def read_blocks(
    images: Sequence[Image],
    source: Path,
    stamps: Mapping[str, ArchiveStamp],
    buffers: Buffers,
    *,
    compare_times: bool,
) -> Iterator[Block]:
    """Yield `images` in their order, block by block, read by threads ahead of their use.

    The system is asked for all of them beforehand, sorted by place, so that a disk fetches them in one sweep however
    they are shuffled.

    Args:
        images: what to read.
        source: folder that the archives' names are relative to.
        stamps: what tells a changed archive, by name; an extracted image is its own archive and has none.
        buffers: where to read to; every block's buffer has to be given back.
        compare_times: whether the archives' times must be those of the stamps too.

    Raises:
        UserError: an archive is missing, has changed since it was indexed, or cannot be read to the end of an image.
    """
    with ExitStack() as opened, ThreadPoolExecutor(_READERS) as readers:
        descriptors = {
            archive: opened.enter_context(_open(source / archive, stamps[archive], compare_times=compare_times))
            for archive in sorted({image.archive for image in images} & stamps.keys())
        }
        _announce(images, descriptors)
        ahead: deque[Future[Block]] = deque()
        for group in _groups(images):
            if len(ahead) > _READERS:
                yield ahead.popleft().result()
            # Buffers are taken here, in the blocks' order: taken by the readers, later blocks could starve the next.
            buffer = buffers.take(sum(map(_framed_bytes, group)))
            ahead.append(readers.submit(_read_block, group, buffer, source, descriptors))
        for block in ahead:
            yield block.result()


def _groups(images: Sequence[Image]) -> Iterator[list[Image]]:
    """Cut `images` into groups of about a block each, of at least one image."""
    group: list[Image] = []
    size = 0
    for image in images:
        if group and size + _framed_bytes(image) > _BLOCK_BYTES:
            yield group
            group, size = [], 0
        group.append(image)
        size += _framed_bytes(image)
    if group:
        yield group


def _framed_bytes(image: Image) -> int:
    """Bytes of the image's sample in the tar: two headers, the image in whole tar blocks, and the label's block."""
    return image.length + -image.length % wds.BLOCK + 3 * wds.BLOCK


def _read_block(group: Sequence[Image], buffer: bytearray, source: Path, descriptors: Mapping[str, int]) -> Block:
    """Lay out the images of `group` in `buffer`, and read them into their places."""
    memory = memoryview(buffer)
    places: list[slice] = []
    position = 0
    for image in group:
        before, after = wds.frame(image.key, image.label, image.length)
        start, end = position + len(before), position + len(before) + image.length
        position = end + len(after)
        memory[start - len(before) : start] = before
        memory[end:position] = after
        places.append(slice(start, end))
    for image, place in sorted(zip(group, places, strict=True), key=lambda pair: (pair[0].archive, pair[0].offset)):
        _read(image, memory[place], source, descriptors)
    return Block(group, places, memory[:position], buffer)


def _announce(images: Sequence[Image], descriptors: Mapping[str, int]) -> None:
    """Ask for the images of the opened archives, sorted by place, without waiting for them."""
    for image in sorted(images, key=lambda image: (image.archive, image.offset)):
        if image.archive in descriptors:
            os.posix_fadvise(descriptors[image.archive], image.offset, image.length, os.POSIX_FADV_WILLNEED)


@contextmanager
def _open(archive: Path, stamp: ArchiveStamp | None, *, compare_times: bool) -> Iterator[int]:
    """The descriptor of an archive, once it is sure that it is what was indexed."""
    try:
        descriptor = os.open(archive, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{archive}: cannot be read: {error.strerror}; put it back or index again") from error
    try:
        found = os.fstat(descriptor)
        if stamp and (found.st_size != stamp.size or (compare_times and found.st_mtime_ns != stamp.mtime_ns)):
            raise UserError(f"{archive}: has changed since it was indexed; index it again")
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # read what is asked for, nothing ahead of it
        yield descriptor
    finally:
        os.close(descriptor)


def _read(image: Image, place: memoryview, source: Path, descriptors: Mapping[str, int]) -> None:
    """Fill `place` with the bytes of `image`, from its opened archive or from its own file."""
    if image.archive in descriptors:
        _read_from(descriptors[image.archive], image, place, source)
        return
    with _open(source / image.archive, None, compare_times=False) as descriptor:
        _read_from(descriptor, image, place, source)


def _read_from(descriptor: int, image: Image, place: memoryview, source: Path) -> None:
    done = 0
    while done < image.length:
        try:
            got = os.preadv(descriptor, [place[done:]], image.offset + done)
        except OSError as error:
            raise UserError(f"{source / image.archive}: cannot be read at {image.member}: {error.strerror}") from error
        if not got:
            raise UserError(f"{source / image.archive}: ends within {image.member}; it is truncated: get it again")
        done += got
