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
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from fourminutes.data.ilsvrc import list_train, list_val
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import SPLITS, Split
from fourminutes.record import Record

_METADATA_KEY = b"fourminutes"
_ROWS_PER_GROUP = 2**16  # what a reader of a few rows holds in memory at a time: about 5 MB


class ArchiveStamp(Record):
    """What tells an archive that changed since it was indexed."""

    size: int  # bytes
    mtime_ns: int  # time of the last change, ns since 1970


class Index(Record):
    """What the index says about the source as a whole."""

    version: Literal[1] = 1
    source: Path
    """Folder that was indexed, absolute."""
    classes: tuple[str, ...]
    """WNIDs, sorted; the place in this list is the label."""
    images: dict[Split, int]
    """Number of images of each split."""
    archives: dict[str, ArchiveStamp]
    """Every tar that holds images, relative to the source; extracted images are not listed."""


class Image(NamedTuple):
    """One image and the place of its bytes."""

    member: str
    label: int
    archive: str
    offset: int
    length: int

    @property
    def key(self) -> str:
        """Name of the sample in a WebDataset shard: the file's name without its ending, dots replaced.

        WebDataset takes everything before the first dot as the key. Keys are unique within a split.
        """
        return self.member.rpartition("/")[2].rpartition(".")[0].replace(".", "_")


def read_index(path: Path) -> Index:
    """Read what the index at `path` says about its source; reads no rows.

    Raises:
        UserError: there is no index at `path`, or it is damaged or of another version.
    """
    with _opened(path) as file:
        return _index_of(file, path)


def split_size(path: Path, split: Split) -> int:
    """The number of images of `split` in the index at `path`."""
    return read_index(path).images[split]


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
            parts.append(file.read_row_group(group, list(Image._fields)).take(ascending[low:high] - start))
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
        raise UserError(
            f"{path}: is no index of this version; make it again with `fourminutes data index`"
        ) from error
