"""WebDataset shards: plain tars whose bytes depend on nothing but the samples, and their DALI index.

A sample is two members, ``<key>.jpg`` and ``<key>.cls``; the label is four ASCII digits, which WebDataset's own decoder
reads as a number and which four arithmetic operators decode inside a DALI graph.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fourminutes.errors import UserError

BLOCK = 512  # bytes
END = bytes(2 * BLOCK)  # of the archive, by POSIX.1-1988 (ustar)
_LABEL_DIGITS = 4
_MAX_NAME = 100  # bytes, of the header's name field
# Name, mode, user, group, size, time, checksum, kind, link, format, version, names of user and group, device, prefix.
_HEADER = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100s 6s 2s 32s 32s 8s 8s 155s 12x")


def _packed(name: bytes, size: bytes, checksum: bytes) -> bytes:
    """A ustar header of a regular file: mode 0644, owned by number 0 without a name, of time 0."""
    zero, no_time = b"0000000", b"00000000000"
    owner = (b"0000644", zero, zero)
    return _HEADER.pack(name, *owner, size, no_time, checksum, b"0", b"", b"ustar", b"00", b"", b"", zero, zero, b"")


# What every header adds to its checksum, for which the checksum's own field counts as eight spaces.
_FIXED_SUM = sum(_packed(b"", b"", b" " * 8))


class Sample(NamedTuple):
    """A sample as it stands in a shard."""

    key: str
    label: int
    image: memoryview
    """Bytes of the JPEG."""


def frame(key: str, label: int, size: int) -> tuple[bytes, bytes]:
    """What stands before and after an image of `size` bytes in the tar.

    Returns:
        the image's header; its padding to whole blocks, and the label's header and block.

    Raises:
        UserError: the key is too long for a tar header, or the label has more than four digits.
    """
    if not 0 <= label < 10**_LABEL_DIGITS:
        raise UserError(f"{key}: label {label} does not fit four digits; a data set may have 10,000 classes")
    digits = b"%0*d" % (_LABEL_DIGITS, label)
    after = bytes(-size % BLOCK) + _header(f"{key}.cls", _LABEL_DIGITS) + digits.ljust(BLOCK, b"\0")
    return _header(f"{key}.jpg", size), after


def _header(name: str, size: int) -> bytes:
    encoded = name.encode()
    if len(encoded) > _MAX_NAME:
        raise UserError(f"{name}: longer than the {_MAX_NAME} bytes a tar header holds; give the image a shorter name")
    digits = b"%011o" % size
    return _packed(encoded, digits, b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(digits)))


def dali_index(images: Iterable[tuple[str, int]]) -> bytes:
    """The index by which DALI's ``readers.webdataset`` finds samples, byte for byte as its ``wds2idx`` writes it.

    A line ``v1.2 <samples>``, then a line a sample: suffix, offset, size and name of each member; offsets and sizes in
    bytes.

    Args:
        images: key and size in bytes of every image, in the order of the tar that `frame` makes of them.
    """
    lines: list[str] = []
    position = 0
    for key, size in images:
        image = position + BLOCK
        label = image + size + -size % BLOCK + BLOCK
        lines.append(f"jpg {image} {size} {key}.jpg cls {label} {_LABEL_DIGITS} {key}.cls\n")
        position = label + BLOCK
    return "".join((f"v1.2 {len(lines)}\n", *lines)).encode()


def read_samples(tar: bytes) -> Iterator[Sample]:
    """Read the samples of a whole tar that was made of `frame`; every byte but the images' is checked.

    Raises:
        ValueError: the tar is damaged; the message says where.
    """
    view, position, where = memoryview(tar), 0, "at its first sample"
    while view[position:] != END:
        try:
            key, size = _read_header(tar[position : position + BLOCK])
            start, end = position + BLOCK, position + BLOCK + size
            position = end + -size % BLOCK + 2 * BLOCK
            label = int(tar[position - BLOCK : position - BLOCK + _LABEL_DIGITS])
            sound = frame(key, label, size) == (tar[start - BLOCK : start], tar[end:position])
        except (ValueError, UserError):
            sound = False
        if not sound:
            raise ValueError(f"damaged {where}")
        yield Sample(key, label, view[start:end])
        where = f"after sample {key}"


def _read_header(header: bytes) -> tuple[str, int]:
    """Key and size in bytes of an image."""
    return header[:_MAX_NAME].rstrip(b"\0").decode().removesuffix(".jpg"), int(header[124:135], 8)
