"""New splits: every picture once, with its label, as the documented draw has it; and what is refused."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from shard_sets import make_set, make_source

from fourminutes.data.index import build_index, read_index, read_rows, sample_key
from fourminutes.data.manifest import INDEX_NAME, make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.errors import UserError
from fourminutes.plan import SPLITS, DataPlan, ImageNetSource, ShardCounts, ShardRecipe, SyntheticSource
from fourminutes.plan.data import ResplitPlan
from fourminutes.record import Manifest, read_record

COMMAND = Path(sys.executable).with_name("fourminutes")
CLASSES, TRAIN, VAL = 4, 9, 3  # images of each class
ALL = CLASSES * (TRAIN + VAL)
RESPLIT = ResplitPlan(train=25, val=15, seed=7)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"), classes=CLASSES, train=TRAIN, val=VAL)


def fourminutes(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)


# --- the draw -------------------------------------------------------------------------------------------------------


def test_the_documented_permutation_gives_the_splits(source, tmp_path):
    build_index(source, tmp_path / "official")
    build_index(source, tmp_path / "resplit", resplit=RESPLIT)

    pool = [image for split in SPLITS for image in read_rows(tmp_path / "official", split)]
    permutation = np.random.RandomState(7).permutation(ALL)
    train, val = ([pool[row] for row in rows] for rows in (permutation[:25], permutation[25:40]))
    assert read_rows(tmp_path / "resplit", "train") == sorted(train, key=lambda image: (image.label, image.member))
    assert read_rows(tmp_path / "resplit", "val") == sorted(val, key=lambda image: image.member)


def test_the_index_says_how_it_was_drawn(source, tmp_path):
    summary = build_index(source, tmp_path / "index", resplit=RESPLIT)
    index = read_index(tmp_path / "index")
    assert (summary.classes, summary.train_images, summary.val_images) == (CLASSES, 25, 15)
    assert index.images == {"train": 25, "val": 15}
    assert index.resplit == RESPLIT
    build_index(source, tmp_path / "official")
    assert read_index(tmp_path / "official").resplit is None


def test_the_seed_decides_the_draw(source, tmp_path):
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        build_index(source, tmp_path / name, resplit=RESPLIT.model_copy(update={"seed": seed}))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert read_index(tmp_path / "first").images_sha256 != read_index(tmp_path / "other").images_sha256


def test_shards_of_another_draw_are_not_taken_for_this_ones(source, tmp_path):
    recipe = ShardRecipe()
    make_set(source, tmp_path, recipe=recipe)
    build_index(source, tmp_path / INDEX_NAME, resplit=RESPLIT)
    make_shard(tmp_path / INDEX_NAME, split="val", shard=0, of=2, out=tmp_path, recipe=recipe)
    with pytest.raises(UserError, match=r"made from other images than index\.parquet lists"):
        make_manifest(tmp_path, out=tmp_path / "manifest.json", expect=None)


# --- real photographs -----------------------------------------------------------------------------------------------


def documented(tiny: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and label of every image of both splits by key."""
    with gzip.open(tiny / "manifest.tsv.gz", "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    wnids = sorted({row["wnid"] for row in rows})
    return {sample_key(row["member"]): (row["sha256"], wnids.index(row["wnid"])) for row in rows}


def test_every_real_picture_is_in_one_split_with_its_label_and_its_bytes(shared_data, tmp_path):
    tiny = shared_data / "tiny"
    build_index(tiny, tmp_path / "index", resplit=ResplitPlan(train=4000, val=1500))
    images = [image for split in SPLITS for image in read_rows(tmp_path / "index", split)]
    archives = {name: (tiny / name).read_bytes() for name in {image.archive for image in images}}
    found = {
        image.key: (
            hashlib.sha256(archives[image.archive][image.offset : image.offset + image.length]).hexdigest(),
            image.label,
        )
        for image in images
    }
    assert len(images) == 5500
    assert found == documented(tiny)


@pytest.fixture(scope="module")
def shrunk(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `tiny` split anew and shrunk, by a user's commands."""
    folder = tmp_path_factory.mktemp("shrunk")
    index = folder / INDEX_NAME
    shards = [
        ("data", "shard", index, "--split", split, "--shard", shard, "--of", of, "--out", folder, "--short-side", "40")
        for split, shard, of in (("train", "0", "2"), ("train", "1", "2"), ("val", "0", "1"))
    ]
    for words in (
        ("data", "index", shared_data / "tiny", "--out", index, "--resplit", "4000:1500", "--resplit-seed", "3"),
        *shards,
        ("data", "manifest", folder, "--out", folder / "manifest.json"),
    ):
        done = fourminutes(*words)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_real_picture_is_in_one_shard_shrunk_with_its_label(shrunk, shared_data):
    labels: list[tuple[str, int]] = []
    for path in shrunk.glob("*.tar"):
        with tarfile.open(path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}
        keys = [name.removesuffix(".jpg") for name in contents if name.endswith(".jpg")]
        labels += [(key, int(contents[f"{key}.cls"])) for key in keys]
        assert {min(Image.open(io.BytesIO(contents[f"{key}.jpg"])).size) for key in keys} == {40}
    assert sorted(labels) == sorted((key, label) for key, (_, label) in documented(shared_data / "tiny").items())


def test_the_manifest_counts_the_new_splits_and_verify_agrees(shrunk):
    manifest = read_record(shrunk / "manifest.json", Manifest)
    assert {split: summary.samples for split, summary in manifest.splits.items()} == {"train": 4000, "val": 1500}
    for split, summary in manifest.splits.items():
        per_label = np.bincount([image.label for image in read_rows(shrunk / INDEX_NAME, split)], minlength=10)
        assert summary.images_per_label == tuple(per_label)
    done = fourminutes("data", "verify", shrunk, "--manifest", shrunk / "manifest.json")
    assert (done.returncode, "as it was made" in done.stdout) == (0, True)


# --- what is refused ------------------------------------------------------------------------------------------------


def refusal(source: Path, out: Path, resplit: ResplitPlan) -> str:
    with pytest.raises(UserError) as refused:
        build_index(source, out / "index", resplit=resplit)
    assert "\n" not in str(refused.value)
    assert not list(out.iterdir())
    return str(refused.value)


def test_more_images_than_there_are_cannot_be_drawn(source, tmp_path):
    message = refusal(source, tmp_path, ResplitPlan(train=ALL - 5, val=6))
    assert f"{source}: holds 48 images in all, fewer than the 43 + 6 of the resplit; ask for fewer" in message
    build_index(source, tmp_path / "index", resplit=ResplitPlan(train=ALL - 5, val=5))


def test_a_draw_without_training_images_of_a_class_is_refused(source, tmp_path):
    message = refusal(source, tmp_path, ResplitPlan(train=CLASSES - 1, val=10))
    assert "none of the 3 images drawn for train is of class n0000000" in message


def test_equal_names_in_the_official_splits_are_refused_only_where_these_mix(tmp_path):
    source = make_source(tmp_path / "source")
    of_class = source / "val" / "n00000002"
    (of_class / "ILSVRC2012_val_00000003.JPEG").rename(of_class / "n00000002_0.JPEG")
    out = tmp_path / "out"
    out.mkdir()
    message = refusal(source, out, RESPLIT)
    assert "n00000002_0.JPEG and n00000002/n00000002_0.JPEG would both be sample n00000002_0" in message
    assert build_index(source, out / "index").val_images == CLASSES * VAL


@pytest.mark.parametrize("counts", ["4000", "0:5", "1:2:3", ""])
def test_what_is_no_pair_of_counts_is_one_line(source, tmp_path, counts):
    done = fourminutes("data", "index", source, "--out", tmp_path / "index", f"--resplit={counts}")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"fourminutes: --resplit {counts}: is not TRAIN:VAL; give both in images, such as 4000:1500"
    ]


# --- the plan -------------------------------------------------------------------------------------------------------

GIVEN = ImageNetSource(kind="imagenet", path=Path("archives"))
DRAWN = SyntheticSource(kind="synthetic", classes=10, train_per_class=160, val_per_class=40, side_px=72, seed=0)


def data_plan(**changes) -> DataPlan:
    form = {
        "dataset": "small",
        "source": GIVEN,
        "shards": ShardCounts(train=8, val=2),
        "recipe": ShardRecipe(seed=0, check="decode", short_side_px=None, quality=90),
    }
    return DataPlan(**(form | changes))


@pytest.mark.parametrize(("source", "name"), [(GIVEN, "a14596ab96"), (DRAWN, "00d459d7be")])
def test_folders_of_the_official_splits_keep_their_names(source, name):
    assert data_plan(source=source).recipe_hash == name


def test_each_draw_has_a_folder_of_its_own():
    draws = [None, RESPLIT, *(RESPLIT.model_copy(update={key: 11}) for key in ("train", "val", "seed"))]
    assert len({data_plan(resplit=draw).folder for draw in draws}) == len(draws)


def test_known_totals_and_new_splits_exclude_each_other():
    with pytest.raises(ValidationError, match="ilsvrc2012 has the official splits, which resplit gives up"):
        data_plan(resplit=RESPLIT, expect="ilsvrc2012")
