"""The plan's data block: where the pictures come from and how they are packed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fourminutes.plan.base import PlanModel, content_hash

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class SyntheticSource(PlanModel):
    """A miniature ImageNet, drawn by the workflow in the official archives' layout."""

    kind: Literal["synthetic"]
    classes: int = Field(10, ge=2, le=1000, description="number of classes")
    train_per_class: int = Field(100, ge=8, description="training images of each class")
    val_per_class: int = Field(20, ge=1, description="validation images of each class")
    side_px: int = Field(72, ge=32, le=1024, description="typical shorter side of an image, in pixels")
    seed: int = Field(0, ge=0, description="seed of everything drawn")


class ImageNetSource(PlanModel):
    """ImageNet as distributed: the three archives in one folder, or a tree extracted from them."""

    kind: Literal["imagenet"]
    path: Path = Field(
        description="folder that holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz, or an extracted train/<wnid>/ and val/; relative to the clone's root",
    )


Source = Annotated[SyntheticSource | ImageNetSource, Field(discriminator="kind")]


class ResplitPlan(PlanModel):
    """New splits, drawn from all images of the source; those that neither split gets are left out."""

    train: int = Field(
        ge=1, description="training images, drawn from all of the source; without data.resplit the official split"
    )
    val: int = Field(ge=1, description="validation images, drawn from those that are left; likewise")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the draw")


class ShardRecipe(PlanModel):
    """What decides the shards' bytes, beside the pictures themselves."""

    seed: int = Field(0, ge=0, lt=2**32, description="seed of the one global shuffle of each split")
    check: Literal["decode", "header"] = Field(
        "decode",
        description="decode: every image is decoded in full once; header: only its headers are read",
    )
    short_side_px: int | None = Field(
        None,
        ge=16,
        description="shrink images whose shorter side is longer than this, in pixels; null keeps the original bytes",
    )
    quality: int = Field(
        90, ge=1, le=100, description="JPEG quality of images that have to be encoded again, in libjpeg's scale"
    )


class ShardCounts(PlanModel):
    """How many shards each split is packed into."""

    train: int = Field(64, ge=1, le=99_999, description="number of training shards")
    val: int = Field(4, ge=1, le=99_999, description="number of validation shards")

    def of(self, split: Split) -> int:
        """The number of shards of `split`."""
        return self.train if split == "train" else self.val


class DataPlan(PlanModel):
    """The data set of a plan."""

    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="short name, used in folder names")
    source: Source = Field(description="where the pictures come from")
    resplit: ResplitPlan | None = Field(
        None, description="new splits, for a source whose validation set is small; null keeps the official ones"
    )
    expect: Literal["ilsvrc2012"] | None = Field(
        None, description="known totals that the finished set must have; null checks none"
    )
    root: Path = Field(
        Path("data"), description="folder for the index and the shards; may be on scratch; relative to the clone's root"
    )
    index_workers: int | None = Field(
        None, ge=1, description="threads that read headers; null chooses four a core (latency decides, not the cores)"
    )
    shards: ShardCounts = Field(default_factory=ShardCounts, description="number of shards")
    recipe: ShardRecipe = Field(default_factory=ShardRecipe, description="how the shards are made")
    max_broken_percent: float = Field(
        1.0, ge=0, le=100, description="share of a shard's images that may be broken before the job fails, in percent"
    )

    @property
    def recipe_hash(self) -> str:
        """Identifies the shards' content up to the pictures: the recipe, and what is drawn where nothing is given."""
        drawn = self.source if isinstance(self.source, SyntheticSource) else None
        identity = _Identity(shards=self.shards, recipe=self.recipe, drawn=drawn)
        return content_hash(_ResplitIdentity(**dict(identity), resplit=self.resplit) if self.resplit else identity)

    @property
    def folder(self) -> Path:
        """Where the index and the shards lie: ``<root>/<dataset>-<recipe hash>``."""
        return self.root / f"{self.dataset}-{self.recipe_hash}"

    @property
    def source_folder(self) -> Path:
        """Where the archives or the extracted tree lie."""
        if isinstance(self.source, ImageNetSource):
            return self.source.path
        return self.root / f"{self.dataset}-source-{content_hash(self.source)}"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.resplit and self.expect:
            raise ValueError(f"expect: {self.expect} has the official splits, which resplit gives up; leave one out")
        return self


class _Identity(PlanModel):
    shards: ShardCounts
    recipe: ShardRecipe
    drawn: SyntheticSource | None


class _ResplitIdentity(_Identity):
    """Of its own, so that sets with the official splits keep the hash that they had before there were others."""

    resplit: ResplitPlan


def shard_stem(split: Split, shard: int, of: int) -> str:
    """The name of a shard without its ending, such as ``train-00012-of-00064``."""
    return f"{split}-{shard:05d}-of-{of:05d}"
