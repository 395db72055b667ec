"""Real photographs in ImageNet's layout, from the archives to what the readers hand out, by a user's commands."""

from __future__ import annotations

import csv
import gzip
import hashlib
import warnings
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from support.clone import Clone, fresh_clone

from fourminutes.data.loader import training_loader, validation_loader
from fourminutes.plan import SPLITS, LoaderPlan, Split
from fourminutes.record import Manifest, read_record

SHARDS: dict[Split, int] = {"train": 4, "val": 1}


@pytest.fixture(scope="module")
def tiny(shared_data: Path) -> Path:
    return shared_data / "tiny"


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """`tiny` indexed, sharded and summed up."""
    clone = fresh_clone(tmp_path_factory.mktemp("tiny"))
    fourminutes(clone, "data", "index", str(tiny), "--out", "set/index.parquet")
    for split, of in SHARDS.items():
        for shard in range(of):
            place = ["--split", split, "--shard", str(shard), "--of", str(of), "--out", "set"]
            fourminutes(clone, "data", "shard", "set/index.parquet", *place)
    fourminutes(clone, "data", "manifest", "set", "--out", "manifest.json")
    return clone


def fourminutes(clone: Clone, *arguments: str) -> str:
    done = clone.run("fourminutes", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented(tiny: Path, split: Split) -> dict[str, tuple[str, int]]:
    """SHA-256 and label of every image by key, as `manifest.tsv.gz` and the sorted WNIDs say."""
    with gzip.open(tiny / "manifest.tsv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    with (tiny / "classes.tsv").open() as file:
        wnids = sorted(row["WNID"] for row in csv.DictReader(file, delimiter="\t"))
    return {row["member"].removesuffix(".JPEG"): (row["sha256"], wnids.index(row["wnid"])) for row in rows}


def test_the_manifest_counts_every_class(made: Clone, tiny: Path):
    manifest = read_record(made.folder / "manifest.json", Manifest)
    with (tiny / "classes.tsv").open() as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: row["WNID"])
    assert manifest.classes == tuple(row["WNID"] for row in rows)
    for split in SPLITS:
        assert manifest.splits[split].images_per_label == tuple(int(row[split]) for row in rows)
        assert manifest.splits[split].refused == manifest.splits[split].converted == ()


def test_verify_finds_nothing_wrong(made: Clone):
    assert "as it was made" in fourminutes(made, "data", "verify", "set", "--manifest", "manifest.json")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_reads_every_image_untouched_with_its_label(made: Clone, tiny: Path, split: Split):
    shards = sorted(str(path) for path in (made.folder / "set").glob(f"{split}-*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    read = {sample["__key__"]: (hashlib.sha256(sample["jpg"]).hexdigest(), int(sample["cls"])) for sample in samples}
    assert read == documented(tiny, split)


def test_dali_reads_every_image_once_with_its_label(made: Clone, tiny: Path):
    manifest = read_record(made.folder / "manifest.json", Manifest)
    settings = LoaderPlan(threads=2, chunk_images=50)
    place = {"image_px": 32, "batch": 100, "rank": 0, "world_size": 1, "device_id": None}
    loaders = {
        "train": training_loader(made.folder / "set", manifest, settings, seed=0, **place),
        "val": validation_loader(made.folder / "set", manifest, settings, **place),
    }
    for split, loader in loaders.items():
        labels = Counter(label for batch in loader.epoch() for label in batch.labels.tolist())
        assert labels == Counter(label for _, label in documented(tiny, split).values())


def test_an_altered_byte_is_named_by_its_shard(made: Clone):
    shard = made.folder / "set" / "train-00002-of-00004.tar"
    before = shard.read_bytes()
    place = len(before) // 2
    shard.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    try:
        done = made.run("fourminutes", "data", "verify", "set", "--manifest", "manifest.json")
    finally:
        shard.write_bytes(before)
    assert done.returncode == 2
    named = [line for line in done.stderr.splitlines() if line.startswith("fourminutes: ")]
    assert len(named) == 1
    assert "train-00002-of-00004" in named[0]
