"""A shard: its slice of the one global shuffle, as a WebDataset tar with a DALI index and a record.

The bytes depend on the source, the recipe and the number of shards alone. Neither the order in which shards are made
nor the machine nor the number of jobs matters, so a shard that was lost can be made again anywhere.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourminutes.data import wds
from fourminutes.data.hashed import Buffer, HashedWriter
from fourminutes.data.image import encoder_versions, inspect
from fourminutes.data.index import ArchiveStamp, Image, Index, read_index, read_rows
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import SPLITS, ShardRecipe, Split, shard_stem
from fourminutes.progress import progress
from fourminutes.record import ImageNote, ShardRecord, write_record

SUFFIXES = ("tar", "idx", "json")
_READERS = 4  # threads; a cold disk or a parallel file system answers several reads in the time of one
_IMAGES_PER_READ = 16  # that a reader takes at a time, so that handing out work costs nothing beside the reads
_PIECES_AT_A_TIME = 300  # 100 images: often enough for writing to keep up with decoding


def make_shard(
    index: Path, *, split: Split, shard: int, of: int, out: Path, recipe: ShardRecipe, source: Path | None = None
) -> ShardRecord:
    """Write shard number `shard` of `of` to `out`: ``<split>-00012-of-00064.{tar,idx,json}``.

    The record (``.json``) is the last file to appear, so that a record means a whole shard. Killed at any moment and
    run again, this ends with the same bytes and leaves nothing else behind.

    Args:
        index: the Parquet index of the source.
        split: ``train`` or ``val``.
        shard: from 0.
        of: number of shards of the split.
        out: folder of the data set, made where missing.
        recipe: what decides the bytes.
        source: where the archives are now, if not where they were indexed; their times are not compared then, since
            a copy has its own.

    Returns:
        the record.

    Raises:
        UserError: the numbers make no sense; an archive is missing or not what was indexed; more images are broken
            than the recipe allows; `out` cannot be written or is full. The shard's files are then not there, or are as
            they were.
    """
    about = read_index(index)
    count = _image_count(about, index, split, shard, of)
    images = read_rows(index, split, shard_rows(count, split=split, shard=shard, of=of, seed=recipe.seed))
    stem = shard_stem(split, shard, of)
    contents = _read_all(images, source or about.source, about.archives, compare_times=source is None)
    with _whole_or_gone(out, stem):
        with (
            written_aside(out / f"{stem}.idx") as index_file,
            written_aside(out / f"{stem}.tar") as tar_file,
            HashedWriter(tar_file) as tar,
        ):
            packed = _pack(images, contents, recipe, tar, stem)
            _stop_if_too_broken(packed.refused, len(images), recipe, stem)
            dali_index = wds.dali_index(packed.sizes.items())
            index_file.write(dali_index)
            sha256 = tar.finish()
            _remove(out, stem, ("json",))  # an older shard's record must not stand beside the new tar
        record = ShardRecord(
            split=split,
            shard=shard,
            of=of,
            recipe=recipe,
            class_count=len(about.classes),
            samples=len(packed.sizes),
            tar_bytes=tar.size,
            sha256=sha256,
            index_sha256=hashlib.sha256(dali_index).hexdigest(),
            images_per_label=dict(sorted(packed.labels.items())),
            converted=_by_member(packed.converted),
            refused=_by_member(packed.refused),
            tools=encoder_versions(),
        )
        write_record(out / f"{stem}.json", record)
    return record


def shard_rows(count: int, *, split: Split, shard: int, of: int, seed: int) -> NDArray[np.int64]:
    """The rows of a split that are in a shard, in the shard's order: a slice of one permutation of the whole split.

    Slices differ in length by at most one. The permutation comes from NumPy's `RandomState`, whose stream NEP 19
    freezes for good; the generators that replace it may change theirs. It is seeded by the recipe's seed and the
    split's number (0 for train, 1 for val).

    Args:
        count: images in the split.
        split: which split.
        shard: from 0.
        of: number of shards.
        seed: of the recipe.

    Returns:
        row numbers within the split, from 0, shape (n,).
    """
    permutation = np.random.RandomState([seed, SPLITS.index(split)]).permutation(count)
    return permutation[shard * count // of : (shard + 1) * count // of].astype(np.int64)


def _image_count(about: Index, index: Path, split: Split, shard: int, of: int) -> int:
    """The number of images of `split`, once it is sure that the shard's numbers make sense."""
    count = about.images[split]
    if not 0 <= shard < of:
        raise UserError(f"shard {shard} of {of}: shards are numbered 0 to {of - 1}; correct --shard or --of")
    if of > count:
        raise UserError(f"{index}: {count} {split} images do not fill {of} shards; make fewer shards")
    return count


def _read_all(
    images: Sequence[Image], source: Path, stamps: dict[str, ArchiveStamp], *, compare_times: bool
) -> list[memoryview]:
    """The bytes of `images`, in their order, but read in the order in which they lie in the archives."""
    starts = list(accumulate((image.length for image in images), initial=0))
    memory = _memory(starts[-1])
    places = [memory[start:end] for start, end in pairwise(starts)]
    order = sorted(range(len(images)), key=lambda number: images[number][2:4])  # by archive and offset

    def read(numbers: Sequence[int]) -> None:
        for archive, group in groupby(numbers, key=lambda number: images[number].archive):
            with _opened(source / archive, stamps.get(archive), compare_times=compare_times) as descriptor:
                for number in group:
                    _read(descriptor, places[number], images[number], source)

    batches = [order[start : start + _IMAGES_PER_READ] for start in range(0, len(order), _IMAGES_PER_READ)]
    with ThreadPoolExecutor(_READERS) as readers:
        for _ in readers.map(read, batches):
            pass
    return places


def _memory(size: int) -> memoryview:
    """Memory of `size` bytes in huge pages where there are any: touching small ones first takes longer than reading."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


@contextmanager
def _opened(archive: Path, stamp: ArchiveStamp | None, *, compare_times: bool) -> Iterator[int]:
    """The descriptor of an archive, once it is sure that it is what was indexed; an extracted image has no stamp."""
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


def _read(descriptor: int, place: memoryview, image: Image, source: Path) -> None:
    """Fill `place` with the bytes of `image`."""
    done = 0
    while done < image.length:
        try:
            got = os.preadv(descriptor, [place[done:]], image.offset + done)
        except OSError as error:
            raise UserError(f"{source / image.archive}: cannot be read at {image.member}: {error.strerror}") from error
        if not got:
            raise UserError(f"{source / image.archive}: ends within {image.member}; it is truncated: get it again")
        done += got


@dataclass
class _Packed:
    """What went into a shard, and what did not."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Of every image in bytes, by key, in the tar's order."""
    labels: Counter[int] = field(default_factory=Counter)
    converted: list[ImageNote] = field(default_factory=list)
    refused: list[ImageNote] = field(default_factory=list)


def _pack(
    images: Sequence[Image], contents: Sequence[memoryview], recipe: ShardRecipe, tar: HashedWriter, stem: str
) -> _Packed:
    """Inspect every image and write it to `tar`, which goes on writing while the next images are decoded."""
    packed = _Packed()
    pieces: list[Buffer] = []
    with progress(len(images), "img", stem) as bar:
        for image, content in zip(images, contents, strict=True):
            data, note = inspect(
                content, check=recipe.check, short_side_px=recipe.short_side_px, quality=recipe.quality
            )
            if note:
                notes = packed.refused if data is None else packed.converted
                notes.append(ImageNote(member=image.member, reason=note))
            if data is not None:
                before, after = wds.frame(image.key, image.label, len(data))
                pieces += (before, data, after)
                packed.sizes[image.key] = len(data)
                packed.labels[image.label] += 1
            if len(pieces) >= _PIECES_AT_A_TIME:
                tar.write(pieces)
                pieces = []
            bar.update()
    tar.write([*pieces, wds.END])
    return packed


def _by_member(notes: Sequence[ImageNote]) -> tuple[ImageNote, ...]:
    return tuple(sorted(notes, key=lambda note: note.member))


def _stop_if_too_broken(refused: Sequence[ImageNote], count: int, recipe: ShardRecipe, stem: str) -> None:
    if 100 * len(refused) <= recipe.max_broken_percent * count:
        return
    first = ", ".join(f"{note.member} ({note.reason})" for note in _by_member(refused)[:3])
    raise UserError(
        f"{stem}: {len(refused)} of {count} images are broken, more than {recipe.max_broken_percent:g} %: {first}"
        f"{', ...' if len(refused) > 3 else ''}; get the archive again or raise --max-broken-percent"
    )


@contextmanager
def _whole_or_gone(out: Path, stem: str) -> Iterator[None]:
    """Whatever the shard's files were before, after a failure there are none of them."""
    try:
        yield
    except BaseException:
        _remove(out, stem, SUFFIXES)
        raise


def _remove(out: Path, stem: str, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        with suppress(OSError):
            (out / f"{stem}.{suffix}").unlink()
