"""Records of the data: one beside every shard, and the manifest that sums them up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan import ShardRecipe, Split
from fourminutes.record.base import Record


class ImageNote(Record):
    """An image that did not go into its shard as it came."""

    member: str = Field(description="name in the source, such as n01440764/n01440764_12329.JPEG")
    reason: str = Field(description="what was found, such as 'CMYK' or 'truncated'")


class ShardRecord(Record):
    """What is in a shard; a pure function of the source and the recipe, so that equal inputs give equal bytes."""

    kind: Literal["shard"] = "shard"
    split: Split
    shard: int
    of: int
    recipe: ShardRecipe
    class_count: int = Field(description="classes in the whole data set")
    source_sha256: str = Field(description="of the names, labels and sizes of all images of the source")
    samples: int
    tar_bytes: int
    sha256: str = Field(description="of the tar")
    index_sha256: str = Field(description="of the DALI index")
    images_per_label: dict[int, int] = Field(description="only labels that occur")
    converted: tuple[ImageNote, ...] = Field(description="encoded again as JPEG")
    refused: tuple[ImageNote, ...] = Field(description="left out")
    tools: dict[str, str] = Field(description="versions that decide the bytes of encoded images")


class ShardEntry(Record):
    """One shard's line in the manifest."""

    name: str = Field(description="file name without its ending")
    samples: int
    tar_bytes: int
    sha256: str
    index_sha256: str


class SplitSummary(Record):
    """All shards of one split."""

    samples: int
    tar_bytes: int
    images_per_label: tuple[int, ...] = Field(description="by label, 0..N-1")
    shards: tuple[ShardEntry, ...]
    converted: tuple[ImageNote, ...]
    refused: tuple[ImageNote, ...]


class Manifest(Record):
    """The data set in one small file; everything after sharding depends on this."""

    kind: Literal["manifest"] = "manifest"
    folder: str = Field("", description="name of the shards' folder, in which the recipe's hash is; empty: not noted")
    dataset_hash: str = Field(description="SHA-256 over the names and hashes of all shards, and the class list")
    recipe: ShardRecipe
    expected: str | None = Field(description="the known data set whose totals were checked, such as ilsvrc2012")
    classes: tuple[str, ...] = Field(description="WNIDs, sorted; the place in this list is the label")
    splits: dict[Split, SplitSummary]
