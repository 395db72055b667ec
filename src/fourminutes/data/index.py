"""The index: one Parquet row an image, with its label and the place of its bytes in the archives as they lie.

Columns, one row an image, all of `train` before all of `val`:

========  ======  ====================================================================================
split     string  ``train`` or ``val``
wnid      string  WordNet ID of the class
label     int32   place of the WNID among all classes, sorted
member    string  ``n01440764/n01440764_10026.JPEG`` (train), ``ILSVRC2012_val_00000001.JPEG`` (val)
archive   string  file that holds the bytes, relative to the source folder
offset    int64   of the image's first byte in that file, in bytes
length    int64   of the image, in bytes
========  ======  ====================================================================================

Rows of `train` are sorted by class and member, rows of `val` by member, so that a row number means the same
image whichever way the source is packed. An extracted image is its own archive, at offset 0. What concerns the
whole source, `Index`, is JSON under the key ``fourminutes`` of the Parquet schema's metadata.

The splits are the official ones, or drawn anew from both (`fourminutes.data.resplit`); a member then keeps the name
that it has in its official split.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from fourminutes.data.ilsvrc import Source, find_source, list_train, list_val
from fourminutes.data.resplit import split_anew
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import SPLITS, ResplitPlan, Split
from fourminutes.record import Record

_METADATA_KEY = b"fourminutes"
_ROWS_PER_GROUP = 2**16  # what a reader of a few rows holds in memory at a time: about 5 MB
_WORKERS_PER_CORE = 4  # they wait for the disk, not for the cores
_MOST_WORKERS = 64  # more would wait for the interpreter instead


class ArchiveStamp(Record):
    """What tells an archive that changed since it was indexed."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, in ns since 1970."""


class Index(Record):
    """What the index says about the source as a whole."""

    version: Literal[1] = 1
    source: Path
    """Folder that was indexed, absolute."""
    classes: tuple[str, ...]
    """WNIDs, sorted; the place in this list is the label."""
    images: dict[Split, int]
    """Number of images of each split."""
    images_sha256: str
    """Of the splits, names, labels and sizes of all images: tells another source, wherever it lies and however it is
    packed, and another resplit."""
    archives: dict[str, ArchiveStamp]
    """Every tar that holds images, relative to the source; extracted images are not listed."""
    resplit: ResplitPlan | None = None
    """How the splits were drawn; None where they are the official ones."""


class Image(NamedTuple):
    """One image and the place of its bytes; the columns of the file that are needed to pack it."""

    member: str
    label: int
    archive: str
    """Relative to the source folder."""
    offset: int
    """Of the first byte, in bytes."""
    length: int
    """Bytes."""

    @property
    def key(self) -> str:
        """Name of the sample in a shard, unique within the split."""
        return sample_key(self.member)


def sample_key(member: str) -> str:
    """The file's name without its ending, further dots replaced: WebDataset takes the key to end at the first dot."""
    return member.rpartition("/")[2].rpartition(".")[0].replace(".", "_")


@dataclass(frozen=True)
class IndexSummary:
    """What `build_index` found, for the screen."""

    classes: int
    train_images: int
    val_images: int
    wall_s: float


def build_index(
    source: Path, out: Path, *, workers: int | None = None, resplit: ResplitPlan | None = None
) -> IndexSummary:
    """List every image of ImageNet without unpacking a file, and write the index.

    Args:
        source: folder with the official archives, with what was extracted from them, or with a mixture.
        out: Parquet file to write, whole or not at all.
        workers: threads that read headers at the same time; None takes four a core, and at most 64.
        resplit: draws new splits from all images; None keeps the official ones.

    Raises:
        UserError: a part of the source is missing, damaged or unsafe, parts do not agree, there are too few images for
            the resplit, or `out` cannot be written.
    """
    start_s = time.monotonic()
    parts = find_source(source.absolute())
    threads = workers or min(_MOST_WORKERS, _WORKERS_PER_CORE * len(os.sched_getaffinity(0)))
    with written_aside(out) as file:
        index, table = _index_source(parts, threads, resplit)
        file.write(_as_parquet(index, table))
    wall_s = round(time.monotonic() - start_s, 1)
    return IndexSummary(len(index.classes), index.images["train"], index.images["val"], wall_s)


def _index_source(source: Source, workers: int, resplit: ResplitPlan | None) -> tuple[Index, pa.Table]:
    """The index of a source, and its rows in the order of the file."""
    archives = {path.relative_to(source.folder).as_posix(): _stamp(path) for path in source.archives}
    listings = _official_listings(source, workers)
    if resplit:
        _refuse_equal_keys(pa.concat_tables(listings.values()), source.folder)
        listings = split_anew(listings, resplit, source.folder)
    classes = pc.unique(listings["train"]["wnid"]).sort()
    table = pa.concat_tables([_rows(split, listings[split], classes) for split in SPLITS])
    index = Index(
        source=source.folder,
        classes=tuple(classes.to_pylist()),
        images={split: listings[split].num_rows for split in SPLITS},
        archives=archives,
        images_sha256=_images_sha256(table),
        resplit=resplit,
    )
    return index, table


def _official_listings(source: Source, workers: int) -> dict[Split, pa.Table]:
    """The images of both splits as they come, once it is sure that the splits agree."""
    listings: dict[Split, pa.Table] = {"val": list_val(source, workers), "train": list_train(source, workers)}
    known = pc.unique(listings["train"]["wnid"]).to_pylist()
    unknown = set(pc.unique(listings["val"]["wnid"]).to_pylist()).difference(known)
    if unknown:
        raise UserError(
            f"{source.val}: has pictures of {min(unknown)}, which {source.train} lacks; both must be complete"
        )
    _refuse_equal_keys(listings["train"], source.train)
    _refuse_equal_keys(listings["val"], source.val)
    return listings


def _rows(split: Split, listing: pa.Table, classes: pa.Array) -> pa.Table:
    """The columns of the file for one split."""
    label = pc.index_in(listing["wnid"], classes)
    return listing.add_column(0, "split", pa.repeat(split, listing.num_rows)).add_column(2, "label", label)


def _images_sha256(table: pa.Table) -> str:
    """SHA-256 over split, member, label and length of every row, a line each."""
    digest = hashlib.sha256()
    for batch in table.select(["split", "member", "label", "length"]).to_batches(max_chunksize=_ROWS_PER_GROUP):
        columns = [batch[name].cast(pa.string()) for name in batch.schema.names]
        digest.update("\n".join(pc.binary_join_element_wise(*columns, "\t").to_pylist()).encode() + b"\n")
    return digest.hexdigest()


def _refuse_equal_keys(listing: pa.Table, where: Path) -> None:
    """Make sure that no two images would have the same name in the shards."""
    batches = listing.select(["member"]).to_batches(max_chunksize=_ROWS_PER_GROUP)
    keys = pa.chunked_array([pa.array(map(sample_key, batch["member"].to_pylist()), pa.string()) for batch in batches])
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    key = next(count["values"] for count in keys.value_counts().to_pylist() if count["counts"] > 1)
    first, second, *_ = listing["member"].filter(pc.equal(keys, key)).to_pylist()
    raise UserError(f"{where}: {first} and {second} would both be sample {key} in the shards; remove or rename one")


def _as_parquet(index: Index, table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({_METADATA_KEY: index.model_dump_json()}),
        sink,
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
    )
    return sink.getvalue()


def _stamp(path: Path) -> ArchiveStamp:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; put the archive back or link it there") from error
    return ArchiveStamp(size=status.st_size, mtime_ns=status.st_mtime_ns)


def read_index(path: Path) -> Index:
    """Read what the index at `path` says about its source; reads no rows.

    Raises:
        UserError: there is no index at `path`, or it is damaged or of another version.
    """
    with _opened(path) as file:
        return _index_of(file, path)


def read_rows(path: Path, split: Split, rows: NDArray[np.int64] | None = None) -> list[Image]:
    """Read images of `split` from the index at `path`.

    Only one row group at a time is held in memory, so that a few rows of a large index are cheap.

    Args:
        path: the index.
        split: the split that the row numbers count in.
        rows: row numbers, from 0, shape (n,), in any order; all rows of the split where None.

    Returns:
        n images, in the order of `rows`.

    Raises:
        UserError: as `read_index`.
        IndexError: a row number is not in the split.
    """
    with _opened(path) as file:
        images = _index_of(file, path).images
        first = 0 if split == "train" else images["train"]
        chosen = np.arange(images[split]) if rows is None else np.asarray(rows, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < images[split]:
            raise IndexError(f"{split} has rows 0 to {images[split] - 1}")
        table = _take(file, first + chosen)
    return [Image(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def _take(file: pq.ParquetFile, rows: NDArray[np.int64]) -> pa.Table:
    """The columns of `Image` at the given row numbers of the whole file, row group by row group."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    parts = []
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        low, high = np.searchsorted(ascending, (start, end))
        if low < high:
            # On threads the columns are read no faster here, and each thread keeps memory of its own.
            rows_of_group = file.read_row_group(group, list(Image._fields), use_threads=False)
            parts.append(rows_of_group.take(ascending[low:high] - start))
        start = end
    table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table().select(list(Image._fields))
    return table.take(np.argsort(order))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open the Parquet file at `path`; what is wrong with it becomes a `UserError`."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such index; make it with `fourminutes data index`") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as an index; make it again with `fourminutes data index`") from error


def _index_of(file: pq.ParquetFile, path: Path) -> Index:
    try:
        return Index.model_validate_json((file.schema_arrow.metadata or {})[_METADATA_KEY])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{path}: is no index of this version; make it again with `fourminutes data index`") from error
