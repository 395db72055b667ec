"""Chunks of shards: the loader shuffles these, which mixes nearly as well as shuffling single images does.

A chunk is a run of samples in a shard, given to DALI as the shard's path and an index file that lists the run alone.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourminutes.errors import UserError
from fourminutes.plan import Split
from fourminutes.record import Manifest, ShardEntry

MAX_CHUNKS = 25_600
"""DALI 2.4 takes seconds to start with so many; with 128,000 it ran out of file descriptors."""

SPARE_FILES = 256
"""What a training process holds open beside its chunks, at most."""

_INDEX_VERSION = "v1.2"


@dataclass(frozen=True)
class ShardFiles:
    """A shard's entry in the manifest, and where its files lie."""

    entry: ShardEntry
    tar: Path
    index: Path


def find_shards(folder: Path, manifest: Manifest, split: Split, world_size: int) -> list[ShardFiles]:
    """The shards of `split` that hold samples, in order.

    Raises:
        UserError: a file is missing, a tar has not the manifest's size or an index not its number of samples, or
            there are fewer samples than `world_size`, the processes that share them.
    """
    entries = manifest.splits[split].shards if split in manifest.splits else ()
    shards = [
        ShardFiles(entry, folder / f"{entry.name}.tar", folder / f"{entry.name}.idx")
        for entry in entries
        if entry.samples
    ]
    samples = sum(shard.entry.samples for shard in shards)
    if samples < world_size:
        raise UserError(
            f"{folder}: the manifest has {samples} {split} images, fewer than the {world_size} processes of the run; "
            "shard more images or take fewer processes"
        )
    for shard in shards:
        _check(shard, folder)
    return shards


def _check(shard: ShardFiles, folder: Path) -> None:
    if not shard.tar.is_file():
        raise UserError(f"{shard.tar}: the shard is missing; run `fourminutes data shard` for it again")
    if shard.tar.stat().st_size != shard.entry.tar_bytes:
        raise UserError(
            f"{shard.tar}: has not the size that the manifest gives; run `fourminutes data verify {folder}`, "
            "which says what is wrong"
        )
    if not shard.index.is_file():
        raise _unusable_index(shard, "the shard's index is missing")
    _index_lines(shard)


def _index_lines(shard: ShardFiles) -> list[str]:
    """One line a sample."""
    header, *lines = shard.index.read_text(errors="replace").splitlines() or [""]
    if header != f"{_INDEX_VERSION} {shard.entry.samples}" or len(lines) != shard.entry.samples:
        raise _unusable_index(shard, f"is no DALI index of {shard.entry.samples} samples")
    return lines


def _unusable_index(shard: ShardFiles, what: str) -> UserError:
    way_out = f"rebuild it with `fourminutes data verify {shard.index.parent} --rebuild-index`"
    return UserError(f"{shard.index}: {what}; {way_out}")


def chunk_size(wanted_images: int, shards: Sequence[ShardFiles]) -> int:
    """The images a chunk: `wanted_images`, or more where there would be too many chunks.

    Of S shards with N samples in all, chunks of c images are at most N/c + S in number.

    Raises:
        UserError: there are too many shards for any size.
    """
    spare = MAX_CHUNKS - len(shards)
    if spare <= 0:
        raise UserError(f"{len(shards)} shards are more than the loader can hold open; make fewer than {MAX_CHUNKS}")
    samples = sum(shard.entry.samples for shard in shards)
    return max(wanted_images, -(-samples // spare))


def allow_open_chunks(chunks: int) -> None:
    """Let this process hold a file open for each of so many chunks, beside what else it needs.

    Raises:
        UserError: its hard limit is lower.
    """
    needed = chunks + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(
            f"loader.chunk_images: {chunks} chunks hold as many files open on Lustre, and a process may open {hard} "
            f"(ulimit -Hn); raise chunk_images by a factor of {-(-needed // hard)}, or the limit"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def write_chunks(shards: Sequence[ShardFiles], chunk_images: int, out: Path) -> Iterator[tuple[Path, Path]]:
    """Write the chunks' index files to the folder `out`.

    Yields:
        for each chunk, in the shards' order: the shard's tar, and the chunk's index file.
    """
    for shard in shards:
        samples = _index_lines(shard)
        for start in range(0, len(samples), chunk_images):
            chunk = samples[start : start + chunk_images]
            path = out / f"{shard.entry.name}-{start:06d}.idx"
            path.write_text("\n".join([f"{_INDEX_VERSION} {len(chunk)}", *chunk, ""]))
            yield shard.tar, path
