"""A shard: its slice of the one global shuffle, as a WebDataset tar with a DALI index and a record.

The bytes depend on the source, the recipe and the number of shards alone. Neither the order in which shards are made
nor the machine nor the number of jobs matters, so a shard that was lost can be made again anywhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourminutes.data import wds
from fourminutes.data.blocks import Block, Buffers, read_blocks
from fourminutes.data.hashed import HashedWriter
from fourminutes.data.image import Inspected, encoder_versions, inspect
from fourminutes.data.index import Image, Index, read_index, read_rows
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import SPLITS, ShardRecipe, Split, shard_stem
from fourminutes.progress import Progress, progress
from fourminutes.record import ImageNote, ShardRecord, write_record

SUFFIXES = ("tar", "idx", "json")


def make_shard(
    index: Path,
    *,
    split: Split,
    shard: int,
    of: int,
    out: Path,
    recipe: ShardRecipe,
    max_broken_percent: float = 1.0,
    source: Path | None = None,
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
        max_broken_percent: share of the shard's images that may be broken, in percent.
        source: where the archives are now, if not where they were indexed; their times are not compared then, since
            a copy has its own.

    Returns:
        the record.

    Raises:
        UserError: the numbers make no sense; an archive is missing or not what was indexed; more images are broken
            than allowed; `out` cannot be written or is full. The shard's files are then not there, or are as
            they were.
    """
    about = read_index(index)
    count = _image_count(about, index, split, shard, of)
    images = read_rows(index, split, shard_rows(count, split=split, shard=shard, of=of, seed=recipe.seed))
    stem = shard_stem(split, shard, of)
    buffers = Buffers()
    blocks = read_blocks(images, source or about.source, about.archives, buffers, compare_times=source is None)
    with _replacing(out, stem) as let_go_of_old:
        with (
            written_aside(out / f"{stem}.idx") as index_file,
            written_aside(out / f"{stem}.tar") as tar_file,
            HashedWriter(tar_file) as tar,
            progress(len(images), "img", stem) as bar,
        ):
            packed = _pack(blocks, buffers, recipe, tar, bar)
            _stop_if_too_broken(packed.refused, len(images), max_broken_percent, stem)
            dali_index = wds.dali_index(packed.sizes.items())
            index_file.write(dali_index)
            sha256 = tar.finish()
            let_go_of_old()
        record = ShardRecord(
            split=split,
            shard=shard,
            of=of,
            recipe=recipe,
            class_count=len(about.classes),
            source_sha256=about.images_sha256,
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


@dataclass
class _Packed:
    """What went into a shard, and what did not."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Of every image in bytes, by key, in the tar's order."""
    labels: Counter[int] = field(default_factory=Counter)
    converted: list[ImageNote] = field(default_factory=list)
    refused: list[ImageNote] = field(default_factory=list)

    def add(self, images: Sequence[Image], outcomes: Sequence[Inspected]) -> None:
        """Take in what became of `images`."""
        for image, (data, note) in zip(images, outcomes, strict=True):
            if note:
                notes = self.refused if data is None else self.converted
                notes.append(ImageNote(member=image.member, reason=note))
            if data is not None:
                self.sizes[image.key] = len(data)
                self.labels[image.label] += 1


def _pack(blocks: Iterator[Block], buffers: Buffers, recipe: ShardRecipe, tar: HashedWriter, bar: Progress) -> _Packed:
    """Inspect every image and write it to `tar`, which goes on writing while the next images are decoded."""
    packed = _Packed()
    for block in blocks:
        outcomes = [
            inspect(block.tar[place], check=recipe.check, short_side_px=recipe.short_side_px, quality=recipe.quality)
            for place in block.places
        ]
        is_untouched = all(isinstance(outcome.data, memoryview) and outcome.note is None for outcome in outcomes)
        content = block.tar if is_untouched else _framed(block.images, outcomes)
        tar.write(content, done=partial(buffers.give_back, block.buffer))
        packed.add(block.images, outcomes)
        bar.update(len(outcomes))
    tar.write(wds.END)
    return packed


def _framed(images: Sequence[Image], outcomes: Sequence[Inspected]) -> bytes:
    """The samples of what was kept or converted, as they stand in the tar."""
    pieces: list[bytes | memoryview] = []
    for image, outcome in zip(images, outcomes, strict=True):
        if outcome.data is not None:
            before, after = wds.frame(image.key, image.label, len(outcome.data))
            pieces += (before, outcome.data, after)
    return b"".join(pieces)


def _by_member(notes: Sequence[ImageNote]) -> tuple[ImageNote, ...]:
    return tuple(sorted(notes, key=lambda note: note.member))


def _stop_if_too_broken(refused: Sequence[ImageNote], count: int, max_percent: float, stem: str) -> None:
    if 100 * len(refused) <= max_percent * count:
        return
    first = ", ".join(f"{note.member} ({note.reason})" for note in _by_member(refused)[:3])
    raise UserError(
        f"{stem}: {len(refused)} of {count} images are broken, more than {max_percent:g} %: {first}"
        f"{', ...' if len(refused) > 3 else ''}; get the archive again or raise --max-broken-percent"
    )


@contextmanager
def _replacing(out: Path, stem: str) -> Iterator[Callable[[], None]]:
    """Yield what lets go of an older shard: a failure before that leaves it, one after leaves none of its files."""
    has_let_go = False

    def let_go_of_old() -> None:
        nonlocal has_let_go
        has_let_go = True
        _remove(out, stem, ("json",))  # an older shard's record must not stand beside the new tar

    try:
        yield let_go_of_old
    except BaseException:
        if has_let_go:
            _remove(out, stem, SUFFIXES)
        raise


def _remove(out: Path, stem: str, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        with suppress(OSError):
            (out / f"{stem}.{suffix}").unlink()
