"""The shards that the real input is read from."""

from __future__ import annotations

from pathlib import Path

from loops import Shards

from fourminutes.data.index import build_index
from fourminutes.data.manifest import INDEX_NAME, make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.data.synthetic import synthesize
from fourminutes.plan import SPLITS, ShardCounts, ShardRecipe, SyntheticSource
from fourminutes.plan.data import ResplitPlan

COUNTS = ShardCounts(train=4, val=1)
RECIPE = ShardRecipe(check="header")
DRAWN_CLASSES = 10


def from_source(source: Path, images: int | None, folder: Path) -> Shards:
    """Shards in `folder` of a folder in ImageNet's layout: of all its training images, or of `images` drawn from it."""
    resplit = ResplitPlan(train=images, val=1) if images else None
    which = f"{images:,} images drawn from" if images else "all training images of"
    return _packed(source, resplit, folder, f"{which} the folder given by --source")


def drawn(images: int, side_px: int, folder: Path) -> Shards:
    """Shards in `folder` of `images` pictures, about `side_px` on the shorter side, as `data synthesize` draws them."""
    per_class = max(8, images // DRAWN_CLASSES)
    look = SyntheticSource(
        kind="synthetic", classes=DRAWN_CLASSES, train_per_class=per_class, val_per_class=1, side_px=side_px
    )
    synthesize(folder / "source", look)
    words = f"{DRAWN_CLASSES * per_class:,} pictures drawn by `fourminutes data synthesize`, {side_px} px"
    return _packed(folder / "source", None, folder, words)


def _packed(source: Path, resplit: ResplitPlan | None, folder: Path, words: str) -> Shards:
    packed = folder / "set"
    build_index(source, packed / INDEX_NAME, resplit=resplit)
    for split in SPLITS:
        of = COUNTS.of(split)
        for shard in range(of):
            # One of the drawn pictures is cut off, and in a small set that is more than the usual 1 %.
            make_shard(
                packed / INDEX_NAME, split=split, shard=shard, of=of, out=packed, recipe=RECIPE, max_broken_percent=10
            )
    manifest = make_manifest(packed, out=folder / "manifest.json", expect=None)
    entries = manifest.splits["train"].shards
    samples, size = sum(entry.samples for entry in entries), sum(entry.tar_bytes for entry in entries)
    return Shards(packed, manifest, f"{words}; {size / samples / 1e3:.0f} kB each")
