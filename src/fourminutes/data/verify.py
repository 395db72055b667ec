"""Every byte of a data set read again and held against its records or its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fourminutes.data import wds
from fourminutes.data.image import inspect
from fourminutes.data.manifest import dataset_hash, entry_of, shard_files
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import shard_stem
from fourminutes.progress import progress
from fourminutes.record import Manifest, ShardEntry, ShardRecord, read_record

_MIB = 2**20
_AGAIN = "make the shard again"


def verify(folder: Path, manifest: Manifest | None, *, rebuild_index: bool = False) -> list[str]:
    """Read every byte of the data set in `folder` and say what is wrong, a line a problem.

    Args:
        folder: of the data set.
        manifest: to hold the shards against; None takes the shards' own records, which tell a changed byte but not
            a shard that was made again in another way.
        rebuild_index: write missing or wrong DALI indices again, from their tars.

    Returns:
        the problems; none where all is as it was made.

    Raises:
        UserError: there is no such folder, or nothing in it to verify, or an index cannot be written.
    """
    stems = _stems(folder)
    if not stems and not manifest:
        raise UserError(f"{folder}: holds no shards; give the data set's folder")
    problems: list[str] = []
    entries = _recorded(folder, stems, problems)
    if manifest:
        problems += _differences(manifest, entries)
        entries = {entry.name: entry for split in manifest.splits.values() for entry in split.shards}
    size_mib = sum(-(-entry.tar_bytes // _MIB) for entry in entries.values())
    with progress(size_mib, "MiB", f"verify {folder.name}") as bar:
        for entry in entries.values():
            problems += _check_tar(folder / f"{entry.name}.tar", entry, bar.update)
            problems += _check_index(folder, entry, rebuild=rebuild_index)
    return problems


def _stems(folder: Path) -> list[str]:
    """The names of the shards that should be in `folder`, by what is there: of every set that has a file, all."""
    sets = {(file.split, file.of) for file in shard_files(folder)}
    return [shard_stem(split, shard, of) for split, of in sorted(sets) for shard in range(of)]


def _recorded(folder: Path, stems: list[str], problems: list[str]) -> dict[str, ShardEntry]:
    """What the records say of each shard, by name; adds to `problems` those that say nothing."""
    entries = {}
    for stem in stems:
        try:
            entry = entry_of(read_record(folder / f"{stem}.json", ShardRecord))
        except UserError as error:
            problems.append(f"{error}; {_AGAIN}")
            continue
        if entry.name != stem:
            problems.append(f"{folder / stem}.json: is the record of {entry.name}; {_AGAIN}")
        else:
            entries[stem] = entry
    return entries


def _differences(manifest: Manifest, recorded: dict[str, ShardEntry]) -> Iterator[str]:
    """How the records differ from the manifest, and the manifest from its own hash."""
    listed = {entry.name: entry for split in manifest.splits.values() for entry in split.shards}
    if dataset_hash(listed.values(), manifest.classes) != manifest.dataset_hash:
        yield "manifest: does not agree with its own dataset hash; make it again"
    for name, entry in recorded.items():
        if name not in listed:
            yield f"{name}: is not in the manifest; remove it, or make the manifest again"
        elif listed[name] != entry:
            yield f"{name}: its record differs from the manifest; {_AGAIN}, or the manifest if that is older"


def _check_tar(tar: Path, entry: ShardEntry, read_mib: Callable[[int], object]) -> Iterator[str]:
    digest = hashlib.sha256()
    size = 0
    try:
        with tar.open("rb") as file:
            while piece := file.read(_MIB):
                digest.update(piece)
                size += len(piece)
                read_mib(1)
    except OSError as error:
        yield f"{tar}: cannot be read: {error.strerror}; {_AGAIN}"
        return
    if size != entry.tar_bytes:
        yield f"{tar}: has {size:,} bytes instead of {entry.tar_bytes:,}; {_AGAIN}"
    elif digest.hexdigest() != entry.sha256:
        yield f"{tar}: its SHA-256 is not that of the record{_first_damage(tar.read_bytes())}; {_AGAIN}"


def _first_damage(tar: bytes) -> str:
    """Where the first sample is that no longer reads; empty where a byte of a picture changed and it still does."""
    try:
        for sample in wds.read_samples(tar):
            outcome = inspect(sample.image, check="decode", short_side_px=None, quality=90)
            if outcome.note:
                return f", damaged in sample {sample.key}"
    except ValueError as error:
        return f", {error}"
    return ""


def _check_index(folder: Path, entry: ShardEntry, *, rebuild: bool) -> Iterator[str]:
    index = folder / f"{entry.name}.idx"
    try:
        found = hashlib.sha256(index.read_bytes()).hexdigest()
    except OSError as error:
        found = error.strerror or "unreadable"
    if found == entry.index_sha256:
        return
    if not rebuild:
        what = "is not that of the record" if index.is_file() else f"cannot be read: {found}"
        yield f"{index}: {what}; write it again with --rebuild-index"
    elif not _rebuild(index, entry):
        yield f"{index}: cannot be made from the tar; {_AGAIN}"


def _rebuild(index: Path, entry: ShardEntry) -> bool:
    """Write `index` again from its tar; False where that does not give the recorded index."""
    try:
        samples = wds.read_samples(index.with_suffix(".tar").read_bytes())
        content = wds.dali_index((sample.key, len(sample.image)) for sample in samples)
    except (OSError, ValueError):
        return False
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        return False
    with written_aside(index) as file:
        file.write(content)
    return True
