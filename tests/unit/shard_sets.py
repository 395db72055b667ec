"""Small sources and data sets for the tests of sharding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fourminutes.data.index import build_index
from fourminutes.data.manifest import INDEX_NAME
from fourminutes.data.shard import make_shard
from fourminutes.plan import ShardRecipe, Split

RECIPE = ShardRecipe(seed=3)
COUNTS: dict[Split, int] = {"train": 3, "val": 2}


def picture(seed: int, mode: str = "RGB", *, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture with some noise, `size` in pixels (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg(seed: int) -> bytes:
    return encoded(picture(seed), quality=85)


def make_source(folder: Path, *, classes: int = 4, train: int = 9, val: int = 3) -> Path:
    """An extracted tree with `train` and `val` images of each class."""
    for number in range(classes):
        wnid = f"n{number + 1:08d}"
        for split, count in (("train", train), ("val", val)):
            of_class = folder / split / wnid
            of_class.mkdir(parents=True)
            for image in range(count):
                name = f"{wnid}_{image}.JPEG" if split == "train" else f"ILSVRC2012_val_{number * val + image:08d}.JPEG"
                (of_class / name).write_bytes(jpeg(1000 * number + 100 * (split == "val") + image))
    return folder


def make_set(source: Path, folder: Path, *, recipe: ShardRecipe = RECIPE) -> Path:
    """The data set of `source`: index and all shards in `folder`."""
    build_index(source, folder / INDEX_NAME)
    for split, of in COUNTS.items():
        for shard in range(of):
            make_shard(folder / INDEX_NAME, split=split, shard=shard, of=of, out=folder, recipe=recipe)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of `folder`, hidden ones too, but the index."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != INDEX_NAME}
