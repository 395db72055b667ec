"""The pictures that a plan is made from: there, readable, whole, and the right ones."""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from fourminutes.data.ilsvrc import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE, find_source
from fourminutes.data.manifest import KNOWN
from fourminutes.data.tar import first_member, list_members, opened_tar
from fourminutes.doctor.finding import Finding, Findings
from fourminutes.errors import UserError
from fourminutes.plan import SPLITS, DataPlan, SyntheticSource, shard_stem
from fourminutes.progress import progress

_GET_AGAIN = "copy or download it again"
_MIB = 2**20
_WEB_PAGE = re.compile(rb"\s*(<!doctype|<html|<\?xml)", re.IGNORECASE)


class KnownArchive(NamedTuple):
    """An archive of ILSVRC2012 as image-net.org gives it."""

    size: int
    """Bytes."""
    md5: str


KNOWN_ARCHIVES = {
    "ilsvrc2012": {
        TRAIN_ARCHIVE: KnownArchive(147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
        VAL_ARCHIVE: KnownArchive(6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
        f"{DEVKIT}.tar.gz": KnownArchive(2_568_145, "fa75699e90414af021442c21a62c3abf"),
    }
}
"""By known data set and file; sizes and MD5 sums as the download page has them."""


def look_at_archives(data: DataPlan, *, needed: bool, checksums: bool) -> list[Finding]:
    """Whether the pictures are there and the right ones.

    Args:
        data: the plan's data block.
        needed: whether anything is left to do that reads pictures.
        checksums: whether archives with known MD5 sums are read to their ends.
    """
    findings = Findings("archives")
    if not missing_shards(data):
        findings.add("ok", "shards", f"{data.folder}: all are there; their source is not needed any more")
        return findings.all
    if not needed:
        findings.add("ok", "pictures", "not needed: every run has its record, so the plan only draws")
        return findings.all
    if isinstance(data.source, SyntheticSource):
        findings.add("ok", "pictures", f"drawn by the workflow, to {data.source_folder}")
        return findings.all
    try:
        source = find_source(data.source_folder)
    except UserError as error:
        findings.add_error("missing", "pictures", error)
        return findings.all
    known = KNOWN_ARCHIVES.get(data.expect or "", {})
    for part in (source.train, source.val, source.devkit):
        if part is not None and part.is_dir():
            _add_folder(findings, part, data)
        elif part is not None:
            _add_archive(findings, part, known.get(part.name), checksums=checksums)
    return findings.all


def missing_shards(data: DataPlan) -> list[str]:
    """The names of the shards' tars that are not made yet."""
    there = {path.name for path in data.folder.glob("*.tar")}
    counts = [(split, data.shards.of(split)) for split in SPLITS]
    names = (f"{shard_stem(split, shard, of)}.tar" for split, of in counts for shard in range(of))
    return [name for name in names if name not in there]


def _add_archive(findings: Findings, archive: Path, known: KnownArchive | None, *, checksums: bool) -> None:
    """One archive: its kind, its size where that is known, and its sum where that is asked for."""
    try:
        size = archive.stat().st_size
        _stop_if_web_page(archive)
        if known and size != known.size:
            raise UserError(f"{archive}: has {size:,} bytes, the official one {known.size:,}; {_GET_AGAIN}")
        _stop_if_wrong_kind(archive)
        words = [f"{size:,} bytes", "the official size" if known else "a tar of the right kind"]
        if known and checksums:
            _stop_if_other_sum(archive, size, known.md5)
            words.append("and MD5 sum")
        findings.add("ok", archive.name, f"{archive.parent}: {', '.join(words)}")
    except UserError as error:
        findings.add_error("missing", archive.name, error)
    except OSError as error:
        what = f"{archive}: cannot be read: {error.strerror}"
        findings.add("missing", archive.name, what, "look at its permissions and links")


def _stop_if_web_page(archive: Path) -> None:
    with archive.open("rb") as file:
        if _WEB_PAGE.match(file.read(256)):
            raise UserError(f"{archive}: is a web page; log in at image-net.org and download the file itself")


def _stop_if_wrong_kind(archive: Path) -> None:
    """Look at the archive's first member, and whether it is whole."""
    if archive.name.endswith(".gz"):
        _stop_if_no_devkit(archive)
        return
    holds_classes = archive.name == TRAIN_ARCHIVE
    with opened_tar(archive) as region:
        # All headers where they are few: a tar of tars may be cut where it looks like an end.
        first = (list_members(region).names[:1] or [""])[0] if holds_classes else first_member(region)
    is_class = re.fullmatch(r"(.*/)?n\d{8}\.tar", first) is not None
    if is_class != holds_classes:
        held = "class tars" if holds_classes else "pictures"
        raise UserError(f"{archive}: holds {first or 'nothing'}, where {held} belong; put the right file there")


def _stop_if_no_devkit(archive: Path) -> None:
    try:
        with tarfile.open(archive, "r:gz") as devkit:
            names = devkit.getnames()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{archive}: is truncated, or no gzipped tar; {_GET_AGAIN}") from error
    if not any(name.endswith("meta.mat") for name in names):
        raise UserError(f"{archive}: holds no meta.mat, so it is not the devkit; put the right file there")


def _stop_if_other_sum(archive: Path, size: int, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file, progress(size // _MIB, "MiB", archive.name) as bar:
        while piece := file.read(8 * _MIB):
            digest.update(piece)
            bar.update(len(piece) // _MIB)
    if digest.hexdigest() != md5:
        raise UserError(f"{archive}: its MD5 sum is {digest.hexdigest()}, the official one {md5}; {_GET_AGAIN}")


def _add_folder(findings: Findings, folder: Path, data: DataPlan) -> None:
    """An extracted part: how many classes it has."""
    classes = sum(entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith("."))
    expected = KNOWN[data.expect].classes if data.expect else None
    if folder.name == "train" and expected not in (None, classes):
        what = f"{folder}: has {classes} class folders, {data.expect} {expected}"
        findings.add("missing", folder.name, what, "extract the rest")
    else:
        what = f"extracted, {classes} class folders" if classes else "extracted, without class folders"
        findings.add("ok", folder.name, f"{folder}: {what}")
