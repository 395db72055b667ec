"""The manifest: all shards of one data set in one small file, checked and summed up."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fourminutes.data.index import read_index
from fourminutes.errors import UserError
from fourminutes.plan import SPLITS, ShardRecipe, Split, shard_stem
from fourminutes.record import Manifest, ShardEntry, ShardRecord, SplitSummary, read_record, write_record

INDEX_NAME = "index.parquet"  # in the data set's folder
_SHARD_FILE = re.compile(r"(train|val)-(\d{5})-of-(\d{5})\.(tar|idx|json)")


class ShardFile(NamedTuple):
    """What a shard file's name says."""

    stem: str
    split: Split
    of: int
    suffix: str


class Totals(NamedTuple):
    """What a known data set has."""

    classes: int
    images: dict[Split, int]


KNOWN = {"ilsvrc2012": Totals(classes=1000, images={"train": 1_281_167, "val": 50_000})}
"""ILSVRC2012's totals, from its development kit's readme."""


def make_manifest(folder: Path, *, out: Path, expect: Literal["ilsvrc2012"] | None) -> Manifest:
    """Sum up all shards in `folder` in one manifest and write it to `out`.

    The dataset hash is the SHA-256 over ``<shard name> <SHA-256 of its tar>``, a line a shard in the order of names,
    and then a line a class: paths, times and tools don't enter it.

    Args:
        folder: of the data set; it holds the index (`INDEX_NAME`) that the shards were made from.
        out: JSON file to write.
        expect: a known data set whose totals this one must have.

    Returns:
        the manifest.

    Raises:
        UserError: the folder holds shards of several sets (other counts, other recipes), lacks some, or the totals are
            not the expected ones.
    """
    index = read_index(folder / INDEX_NAME)
    classes = index.classes
    records = _records_of_one_set(folder, index.images_sha256)
    splits = {split: _summary_of([record for record in records if record.split == split], classes) for split in SPLITS}
    if expect:
        _stop_if_unexpected(folder, expect, len(classes), splits)
    manifest = Manifest(
        folder=folder.absolute().name,
        dataset_hash=dataset_hash((entry for split in splits.values() for entry in split.shards), classes),
        recipe=records[0].recipe,
        expected=expect,
        classes=classes,
        splits=splits,
    )
    write_record(out, manifest)
    return manifest


def dataset_hash(shards: Iterable[ShardEntry], classes: Iterable[str]) -> str:
    """The SHA-256 that names a data set by its content: its shards, in the order of names, and its classes."""
    lines = [*sorted(f"{shard.name} {shard.sha256}" for shard in shards), *classes]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def summary(manifest: Manifest) -> dict[str, Any]:
    """What a reader wants to know first, by key."""
    counts: dict[str, Any] = {"dataset_hash": manifest.dataset_hash, "classes": len(manifest.classes)}
    for name, split in manifest.splits.items():
        counts |= {
            f"{name}_samples": split.samples,
            f"{name}_shards": len(split.shards),
            f"{name}_bytes": split.tar_bytes,
            f"{name}_images_per_class": f"{min(split.images_per_label)} to {max(split.images_per_label)}",
            f"{name}_converted": len(split.converted),
            f"{name}_refused": len(split.refused),
        }
    return counts


def shard_files(folder: Path) -> list[ShardFile]:
    """The shard files in `folder`, sorted by name; other files are passed over.

    Raises:
        UserError: there is no such folder.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}; give the data set's folder") from error
    found = []
    for match in filter(None, map(_SHARD_FILE.fullmatch, names)):
        split: Split = "train" if match[1] == "train" else "val"
        found.append(ShardFile(match[0].removesuffix(f".{match[4]}"), split, int(match[3]), match[4]))
    return found


def entry_of(record: ShardRecord) -> ShardEntry:
    """A shard's line in the manifest."""
    return ShardEntry(
        name=shard_stem(record.split, record.shard, record.of),
        samples=record.samples,
        tar_bytes=record.tar_bytes,
        sha256=record.sha256,
        index_sha256=record.index_sha256,
    )


def _records_of_one_set(folder: Path, source_sha256: str) -> list[ShardRecord]:
    """The records of all shards in `folder`, in the order of names, once it is sure that they are one whole set."""
    files = shard_files(folder)
    for split in SPLITS:
        _stop_if_mixed_or_incomplete(folder, split, [file for file in files if file.split == split])
    stems = [file.stem for file in files if file.suffix == "json"]
    records = [read_record(folder / f"{stem}.json", ShardRecord) for stem in stems]
    recipes: dict[ShardRecipe, str] = {}
    for stem, record in zip(stems, records, strict=True):
        recipes.setdefault(record.recipe, stem)
        _stop_if_not_its_own(folder / stem, record)
        if record.source_sha256 != source_sha256:
            raise UserError(
                f"{folder / stem}.json: made from other images than {INDEX_NAME} lists; make the shards again "
                "from this index: snakemake data --forcerun shard"
            )
    if len(recipes) > 1:
        raise UserError(
            f"{folder}: holds shards of several recipes: {' and '.join(recipes.values())} differ; "
            "keep one set a folder, remove the others"
        )
    return records


def _stop_if_not_its_own(path: Path, record: ShardRecord) -> None:
    """Make sure that a shard's record and tar are of the shard that its name says; `path` has no ending."""
    tar = path.with_name(f"{path.name}.tar")
    recorded = shard_stem(record.split, record.shard, record.of)
    if recorded != path.name:
        raise UserError(f"{path}.json: is the record of {recorded}; make the shard again")
    if tar.stat().st_size != record.tar_bytes:
        raise UserError(f"{tar}: has {tar.stat().st_size} bytes, its record says {record.tar_bytes}; make it again")


def _stop_if_mixed_or_incomplete(folder: Path, split: Split, files: list[ShardFile]) -> None:
    suffixes: dict[str, set[str]] = defaultdict(set)
    for file in files:
        suffixes[file.stem].add(file.suffix)
    counts = sorted({file.of for file in files})
    if not counts:
        raise UserError(f"{folder}: holds no {split} shard; make them with `fourminutes data shard`")
    if len(counts) > 1:
        sets = " and ".join(f"-of-{count:05d}" for count in counts)
        raise UserError(
            f"{folder}: holds {split} shards of several sets ({sets}); keep one set a folder, remove others"
        )
    stems = [shard_stem(split, shard, counts[0]) for shard in range(counts[0])]
    lacking = [
        f"{stem}.{suffix}" for stem in stems for suffix in ("tar", "idx", "json") if suffix not in suffixes[stem]
    ]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise UserError(f"{folder}: lacks {', '.join(lacking[:3])}{more}; make these shards again")


def _summary_of(records: list[ShardRecord], classes: tuple[str, ...]) -> SplitSummary:
    per_label: Counter[int] = Counter()
    for record in records:
        per_label.update(record.images_per_label)
    return SplitSummary(
        samples=sum(record.samples for record in records),
        tar_bytes=sum(record.tar_bytes for record in records),
        images_per_label=tuple(per_label[label] for label in range(len(classes))),
        shards=tuple(map(entry_of, records)),
        converted=tuple(note for record in records for note in record.converted),
        refused=tuple(note for record in records for note in record.refused),
    )


def _stop_if_unexpected(folder: Path, expect: str, classes: int, splits: dict[Split, SplitSummary]) -> None:
    known = KNOWN[expect]
    off = [] if classes == known.classes else [f"{classes:,} classes instead of {known.classes:,}"]
    for name, split in splits.items():
        if split.samples != known.images[name]:
            refused = f" ({len(split.refused)} refused)" if split.refused else ""
            off.append(f"{split.samples:,} {name} images{refused} instead of {known.images[name]:,}")
    if off:
        raise UserError(
            f"{folder}: is not {expect}: {'; '.join(off)}; check the archives, or leave out the expectation"
        )
