"""The file systems that a plan writes to: their kinds, and whether there is room for what it writes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourminutes.data.chunks import MAX_CHUNKS, SPARE_FILES
from fourminutes.data.ilsvrc import TRAIN_ARCHIVE, VAL_ARCHIVE, find_source
from fourminutes.doctor.archives import KNOWN_ARCHIVES, missing_shards
from fourminutes.doctor.finding import Finding, Findings
from fourminutes.doctor.needs import checkpoint_bytes, images_of, needs_pictures, parameters_of
from fourminutes.errors import UserError
from fourminutes.filesystems import file_system, maps_safely
from fourminutes.plan import DataPlan, Plan, RunPlan, SyntheticSource
from fourminutes.record import RunRecord

_GIB = 2**30
_TIGHT = 1.2
_LABEL_BYTES = 1024
"""Of each image in a shard: the header and the one block of its label's file."""
_FILES_A_SHARD = 3


@dataclass(frozen=True)
class Wanted:
    """Something that the plan will write.

    Attributes:
        what: it is, and how that is known.
        folder: where to.
        size: bytes; None where nobody can tell yet.
        files: how many.
    """

    what: str
    folder: Path
    size: int | None
    files: int


def look_at_disks(clone: Path, plan: Plan | None, records: Iterable[RunRecord]) -> list[Finding]:
    """Kind, room and inodes of the file systems of the clone, the data and the work folder.

    Args:
        clone: the project's folder.
        plan: what is to be made; None for nothing.
        records: of earlier runs, which tell networks' sizes.
    """
    findings = Findings("file systems")
    wanted = wanted_by(plan, list(records)) if plan else []
    folders = {"clone": clone}
    if plan:
        folders |= {"data": plan.data.root} if plan.data else {}
        folders |= {"work": plan.work}
    devices: dict[int, list[str]] = {}
    for name, folder in folders.items():
        devices.setdefault(existing(folder).stat().st_dev, []).append(name)
    for device, names in devices.items():
        here = [each for each in wanted if existing(each.folder).stat().st_dev == device]
        _add_room(findings, ", ".join(names), existing(folders[names[0]]), here)
    for name, folder in folders.items():
        if not os.access(existing(folder), os.W_OK):
            findings.add(
                "missing", name, f"{existing(folder)}: cannot be written", "choose a folder that you can write to"
            )
    if plan and plan.data and not maps_safely(plan.data.root):
        _add_lustre(findings, plan, plan.data)
    return findings.all


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))


def wanted_by(plan: Plan, records: list[RunRecord]) -> list[Wanted]:
    """What the plan will write: the shards that are missing, and the checkpoints of runs without a record."""
    runs = {name: run for name, run in plan.runs.items() if not plan.run_record(name).is_file()}
    shards = [_shards(plan, plan.data)] if plan.data and needs_pictures(plan) else []
    return [*shards, *([_checkpoints(plan, runs, records)] if runs else [])]


def _checkpoints(plan: Plan, runs: dict[str, RunPlan], records: list[RunRecord]) -> Wanted:
    """What the runs save at most, all of them at the same time."""
    known = {record.settings.model: record.parameters for record in records}
    size = sum(checkpoint_bytes(run, known.get(run.model) or parameters_of(run.model)) for run in runs.values())
    files = sum((run.checkpoint.keep + 2) * (run.processes + 2) for run in runs.values())
    source = "their records" if all(run.model in known for run in runs.values()) else "their known sizes"
    return Wanted(f"checkpoints of {len(runs)} runs, by the networks' parameters from {source}", plan.work, size, files)


def _shards(plan: Plan, data: DataPlan) -> Wanted:
    """The shards that are missing."""
    total = data.shards.train + data.shards.val
    missing = len(missing_shards(data))
    size, source = _data_bytes(plan, data)
    left = None if size is None else size * missing // total
    return Wanted(f"shards, by {source}", data.root, left, missing * _FILES_A_SHARD)


def _data_bytes(plan: Plan, data: DataPlan) -> tuple[int | None, str]:
    """Bytes of all shards, and of what they are drawn from if they are; and how that is known."""
    images = images_of(plan)
    if isinstance(data.source, SyntheticSource) and images:
        # In the archives and in the shards, with their headers: JPEGs of drawn shapes have less than a byte a pixel.
        return 2 * sum(images.values()) * (data.source.side_px**2 + 3 * 512), "the number of drawn images"
    labels = sum(images.values()) * _LABEL_BYTES if images else 0
    try:
        archives = find_source(data.source_folder).archives
    except UserError:
        archives = ()
    if len(archives) == 2:
        return sum(archive.stat().st_size for archive in archives) + labels, "the archives' sizes"
    if data.expect:
        known = KNOWN_ARCHIVES[data.expect]
        return known[TRAIN_ARCHIVE].size + known[VAL_ARCHIVE].size + labels, "the official archives' sizes"
    return None, "what is there"


def _add_room(findings: Findings, names: str, folder: Path, wanted: list[Wanted]) -> None:
    """One file system: what is free against what is wanted."""
    state = os.statvfs(folder)
    mount = file_system(folder)
    free = state.f_bavail * state.f_frsize
    size = sum(each.size or 0 for each in wanted)
    files = sum(each.files for each in wanted)
    where = f"{mount.kind or 'unknown'} at {mount.point}"
    room = f"{where}: {_gib(free)} free (a quota would not show)"
    parts = ", ".join(f"{_gib(each.size)} {each.what}" for each in wanted if each.size)
    unknown = [each.what for each in wanted if each.size is None]
    if size > free:
        to_do = "free space, or name another folder in the plan: data.root, work"
        findings.add("missing", names, f"{where}: {_gib(free)} free, {_gib(size)} needed: {parts}", to_do)
    elif size * _TIGHT > free:
        findings.add("warn", names, f"{room}; {_gib(size)} needed: {parts}", "free some more, or name another folder")
    else:
        findings.add("ok", names, f"{room}; {_gib(size)} needed{f': {parts}' if parts else ''}" if wanted else room)
    for what in unknown:
        findings.add("note", names, f"room for {what}: not known before the pictures are there", "look again then")
    if state.f_files and files > state.f_favail:
        what = f"{where}: {state.f_favail:,} inodes free, {files:,} files to write"
        findings.add("missing", names, what, "make fewer shards (data.shards), or name another folder")


def _gib(size: int | None) -> str:
    gib = (size or 0) / _GIB
    return f"{gib:,.0f} GiB" if gib >= 100 else f"{gib:.3g} GiB"


def _add_lustre(findings: Findings, plan: Plan, data: DataPlan) -> None:
    """Without mapping, every chunk is an open file."""
    images = (images_of(plan) or {}).get("train", 0)
    chunks = max((images // run.loader.chunk_images for run in plan.runs.values()), default=0) + data.shards.train
    needed = min(chunks, MAX_CHUNKS) + SPARE_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    what = f"shards are read without mapping them into memory, by up to {needed} open files a process"
    if hard != resource.RLIM_INFINITY and needed > hard:
        findings.add("warn", "Lustre", f"{what}; {hard} are allowed here", "raise loader.chunk_images, or ulimit -Hn")
    else:
        findings.add("note", "Lustre", what)
