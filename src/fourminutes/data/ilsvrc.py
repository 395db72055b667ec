"""ImageNet as it is distributed, or as a cluster holds it: which files there are, and which images are in them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fourminutes.data.devkit import read_val_wnids
from fourminutes.data.tar import Members, Region, list_members, opened_tar
from fourminutes.errors import UserError
from fourminutes.progress import progress

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
_ORIGIN = "image-net.org/challenges/LSVRC/2012 (registration needed)"

LISTING = pa.schema(
    {"wnid": pa.string(), "member": pa.string(), "archive": pa.string(), "offset": pa.int64(), "length": pa.int64()}
)
"""Columns of a listing of images; `archive` is relative to the source folder, the numbers are bytes."""

_WNID = re.compile(r"n\d{8}")
_VAL_NUMBER = re.compile(r"_(\d+)\.\w+$")
_ENDINGS = (".jpeg", ".jpg", ".png")
_GET_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Source:
    """Where the parts of ImageNet lie; each is found on its own, so that archives and folders may be mixed."""

    folder: Path
    train: Path
    """``ILSVRC2012_img_train.tar``, or ``train`` with a folder a class."""
    val: Path
    """``ILSVRC2012_img_val.tar``, or ``val``, flat or with a folder a class."""
    devkit: Path | None
    """``ILSVRC2012_devkit_t12.tar.gz`` or that folder; None where `val` has a folder a class."""

    @property
    def archives(self) -> tuple[Path, ...]:
        """The tars that hold images."""
        return tuple(path for path in (self.train, self.val) if path.is_file())


def find_source(folder: Path) -> Source:
    """Find the parts of ImageNet in `folder`.

    Raises:
        UserError: the folder or a part is missing, or `val` is only half sorted into classes.
    """
    try:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; put or link there the folder that holds {TRAIN_ARCHIVE} and the others, "
                f"from {_ORIGIN}"
            )
        train = _find(folder, TRAIN_ARCHIVE, "train")
        val = _find(folder, VAL_ARCHIVE, "val")
        by_class = val.is_dir() and _is_by_class(val)
        return Source(folder, train, val, None if by_class else _find(folder, f"{DEVKIT}.tar.gz", DEVKIT))
    except OSError as error:
        raise _unreadable(error) from error


def _find(folder: Path, archive: str, extracted: str) -> Path:
    if (folder / archive).is_file():
        return folder / archive
    if (folder / extracted).is_dir():
        return folder / extracted
    raise UserError(
        f"{folder / archive}: no such file, and no folder {extracted} beside it; "
        f"put or link it there: {archive} comes from {_ORIGIN}"
    )


def _is_by_class(val: Path) -> bool:
    folders, files = _scan(val)
    pictures = list(filter(_is_picture, files.names))
    if folders and pictures:
        raise UserError(
            f"{val}: holds folders, such as {folders[0]}, beside pictures, such as {pictures[0]}; "
            "move every picture into its class folder, or none"
        )
    return bool(folders)


def list_train(source: Source, workers: int) -> pa.Table:
    """List the training images, sorted by class and member.

    Args:
        source: where to look.
        workers: threads that read headers or folders at the same time.

    Returns:
        A table in the `LISTING` schema; members are ``<wnid>/<name>``.

    Raises:
        UserError: what is there is damaged, unsafe, or no class, or a class has no images.
    """
    if source.train.is_dir():
        listing = _list_class_folders(source.folder, source.train, workers)
    else:
        listing = _list_class_tars(source, workers)
    members = pc.binary_join_element_wise(listing["wnid"], listing["member"], "/")
    return listing.set_column(LISTING.get_field_index("member"), "member", members)


def list_val(source: Source, workers: int) -> pa.Table:
    """List the validation images, sorted by member.

    Args:
        source: where to look.
        workers: as for `list_train`.

    Returns:
        A table in the `LISTING` schema; members are ``<name>``.

    Raises:
        UserError: what is there is damaged or unsafe, does not agree with the devkit, or a class folder is empty.
    """
    if source.devkit is None:
        listing = _list_class_folders(source.folder, source.val, workers)
    else:
        listing = _list_flat(source, read_val_wnids(source.devkit))
    return listing.sort_by("member")


def _list_class_tars(source: Source, workers: int) -> pa.Table:
    """The images of a tar of class tars, which are read where they lie."""
    with opened_tar(source.train) as outer:
        tars = _class_tars(outer)

        def list_class(wnid: str) -> pa.Table:
            found = _pictures(list_members(tars[wnid]), tars[wnid].name)
            return _listing([wnid] * len(found.names), found, [source.train.name] * len(found.names))

        return _list_classes(list_class, tars, source.train, workers)


def _class_tars(outer: Region) -> dict[str, Region]:
    """The class tars in the training archive, by WNID."""
    tars: dict[str, Region] = {}
    found = list_members(outer)
    for member, offset, length in zip(found.names, found.offsets, found.lengths, strict=True):
        name = member.rpartition("/")[2]
        wnid = name.removesuffix(".tar")
        if _is_hidden(name):
            continue
        if wnid == name or not _WNID.fullmatch(wnid):
            raise UserError(f"{outer.name}: member {member} is no class tar such as n01440764.tar; pack it without")
        if wnid in tars:
            raise UserError(f"{outer.name}: holds {name} twice; pack it again with every class once")
        tars[wnid] = Region(outer.descriptor, offset, offset + length, f"{outer.name}: {member}")
    return tars


def _list_class_folders(folder: Path, split: Path, workers: int) -> pa.Table:
    """The images of an extracted split with a folder a class."""
    wnids = _scan(split)[0]
    for wnid in wnids:
        if not _WNID.fullmatch(wnid):
            raise UserError(f"{split / wnid}: is no class folder such as n01440764; move it elsewhere")

    def list_class(wnid: str) -> pa.Table:
        found = _pictures(_scan(split / wnid)[1], str(split / wnid))
        prefix = (split / wnid).relative_to(folder).as_posix()
        return _listing([wnid] * len(found.names), found, [f"{prefix}/{name}" for name in found.names])

    return _list_classes(list_class, wnids, split, workers)


def _list_classes(list_class: Callable[[str], pa.Table], wnids: Collection[str], path: Path, workers: int) -> pa.Table:
    """The images of all classes, sorted by class and member.

    Threads, not processes: they wait for the disk or the network most of the time, and one interpreter goes through
    more than 50,000 headers a second, so that it is done with ImageNet before most file systems are.
    """
    if not wnids:
        raise UserError(f"{path}: holds no classes; {_GET_AGAIN}")
    with ThreadPoolExecutor(workers) as pool, progress(len(wnids), "class", path.name) as bar:
        listings = []
        for listing in pool.map(list_class, sorted(wnids)):
            listings.append(listing.sort_by("member"))
            bar.update()
    return pa.concat_tables(listings)


def _list_flat(source: Source, wnids: list[str]) -> pa.Table:
    """The validation images of a flat tar or folder; `wnids` are the devkit's, by picture number."""
    if source.val.is_dir():
        found = _pictures(_scan(source.val)[1], str(source.val))
        archives = [f"{source.val.name}/{name}" for name in found.names]
    else:
        with opened_tar(source.val) as region:
            found = _pictures(list_members(region), region.name)
        archives = [source.val.name] * len(found.names)
    if len(found.names) != len(wnids):
        raise UserError(
            f"{source.val}: holds {len(found.names)} pictures, but the ground truth in {source.devkit} has "
            f"{len(wnids)} lines; both must be of the same release and complete"
        )
    numbers = [_number(name, source.val, len(wnids)) for name in found.names]
    return _listing([wnids[number - 1] for number in numbers], found, archives)


def _number(name: str, val: Path, pictures: int) -> int:
    """The picture's number, from 1: the line of the ground truth that tells its class."""
    match = _VAL_NUMBER.search(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= pictures:
        raise UserError(
            f"{val}: {name} is not numbered from 1 to {pictures} as ILSVRC2012_val_00000001.JPEG is; {_GET_AGAIN}"
        )
    return number


def _scan(folder: Path) -> tuple[list[str], Members]:
    """The folders and the files in `folder`, sorted by name, hidden ones left out; links are followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda entry: entry.name)
        folders = [entry.name for entry in found if entry.is_dir()]
        files = [(entry.name, entry.stat().st_size) for entry in found if not entry.is_dir()]
    except OSError as error:
        raise _unreadable(error) from error
    return folders, Members([name for name, _ in files], [0] * len(files), [size for _, size in files])


def _unreadable(error: OSError) -> UserError:
    return UserError(f"{error.filename}: cannot be read: {error.strerror}; check links and permissions")


def _pictures(found: Members, where: str) -> Members:
    """Those files that are pictures by their names."""
    rows = zip(found.names, found.offsets, found.lengths, strict=True)
    kept = [row for row in rows if _is_picture(row[0])]
    if not kept:
        raise UserError(f"{where}: holds no pictures ({', '.join(_ENDINGS)}); {_GET_AGAIN}")
    names, offsets, lengths = map(list, zip(*kept, strict=True))
    for name in names:
        if not name.isprintable():  # bytes that are no UTF-8, line breaks
            raise UserError(f"{where}: the name {name!a} cannot be written as text; rename that file")
    return Members(names, offsets, lengths)


def _is_picture(path: str) -> bool:
    return path.lower().endswith(_ENDINGS) and not _is_hidden(path.rpartition("/")[2])


def _is_hidden(name: str) -> bool:
    """Whether a file is no part of the data, such as the ``._*`` files that macOS leaves."""
    return name.startswith(".")


def _listing(wnids: list[str], found: Members, archives: list[str]) -> pa.Table:
    return pa.table([wnids, found.names, archives, found.offsets, found.lengths], schema=LISTING)
