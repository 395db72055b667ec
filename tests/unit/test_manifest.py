"""The manifest: sums, hash, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_sets import COUNTS, RECIPE, encoded, make_set, make_source, picture

from fourminutes.data.index import build_index
from fourminutes.data.manifest import INDEX_NAME, dataset_hash, make_manifest, summary
from fourminutes.data.shard import make_shard
from fourminutes.errors import UserError
from fourminutes.record import Manifest, ShardEntry, read_record


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    return make_set(source, tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the set that a test may spoil."""
    return shutil.copytree(made, tmp_path / "set")


def manifest_of(folder: Path, **options) -> Manifest:
    return make_manifest(folder, out=folder / "manifest.json", **({"expect": None} | options))


def assert_refused(folder: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message):
        manifest_of(folder, **options)
    assert not (folder / "manifest.json").exists()


def test_counts_are_those_of_the_source(folder):
    manifest = manifest_of(folder)
    assert manifest.splits["train"].images_per_label == (9, 9, 9, 9)
    assert manifest.splits["val"].images_per_label == (3, 3, 3, 3)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 36, "val": 12}
    assert manifest.classes == ("n00000001", "n00000002", "n00000003", "n00000004")
    assert [shard.name for shard in manifest.splits["val"].shards] == ["val-00000-of-00002", "val-00001-of-00002"]
    for split in manifest.splits.values():
        sizes = [(folder / f"{shard.name}.tar").stat().st_size for shard in split.shards]
        assert sizes == [shard.tar_bytes for shard in split.shards]
        assert sum(sizes) == split.tar_bytes
    assert read_record(folder / "manifest.json", Manifest) == manifest


def test_summary_is_what_a_reader_asks_first(folder):
    answer = summary(manifest_of(folder))
    assert (answer["classes"], answer["train_samples"], answer["val_shards"]) == (4, 36, COUNTS["val"])
    assert answer["train_images_per_class"] == "9 to 9"


def test_dataset_hash_is_the_contents_not_the_places(source, folder, tmp_path):
    moved = shutil.copytree(source, tmp_path / "elsewhere" / "source")
    assert manifest_of(make_set(moved, tmp_path / "again")).dataset_hash == manifest_of(folder).dataset_hash


@pytest.mark.parametrize("change", [{"name": "val-00001-of-00001"}, {"sha256": "1"}])
def test_dataset_hash_depends_on_every_name_hash_and_class(change):
    entry = ShardEntry(name="val-00000-of-00001", samples=1, tar_bytes=1, sha256="0", index_sha256="0")
    one = dataset_hash([entry], ["n1", "n2"])
    assert dataset_hash([entry.model_copy(update=change)], ["n1", "n2"]) != one
    assert dataset_hash([entry], ["n1", "n3"]) != one


def test_notes_are_gathered(shared_data, tmp_path):
    manifest = manifest_of(make_set(shared_data / "samples", tmp_path))
    assert [note.reason for note in manifest.splits["val"].converted] == ["CMYK"]
    assert sorted(note.reason for note in manifest.splits["train"].converted) == ["CMYK", "PNG"]
    assert (manifest.splits["train"].samples, manifest.splits["val"].samples) == (69, 29)


@pytest.mark.parametrize("suffix", ["tar", "idx", "json"])
def test_a_lacking_file_is_named(folder, suffix):
    (folder / f"train-00001-of-00003.{suffix}").unlink()
    assert_refused(folder, rf"lacks train-00001-of-00003\.{suffix}; make")


def test_a_lacking_split_is_named(folder):
    for path in folder.glob("val-*"):
        path.unlink()
    assert_refused(folder, "holds no val shard")


def test_shards_of_another_count_are_refused(folder):
    make_shard(folder / INDEX_NAME, split="val", shard=0, of=4, out=folder, recipe=RECIPE)
    assert_refused(folder, r"several sets \(-of-00002 and -of-00004\)")


def test_shards_of_another_recipe_are_refused(folder):
    other = RECIPE.model_copy(update={"seed": 4})
    make_shard(folder / INDEX_NAME, split="val", shard=1, of=2, out=folder, recipe=other)
    assert_refused(folder, "several recipes: train-00000-of-00003 and val-00001-of-00002 differ")


def test_shards_of_another_index_are_refused(folder, tmp_path):
    build_index(make_source(tmp_path / "other", classes=5), folder / INDEX_NAME)
    assert_refused(folder, "made from other images than index.parquet lists")


def test_a_record_that_is_damaged_is_named(folder):
    (folder / "val-00001-of-00002.json").write_text("{}")
    assert_refused(folder, "val-00001-of-00002.json: is no ShardRecord")


def test_a_set_that_is_not_ilsvrc2012_says_what_is_off(folder):
    off = "4 classes instead of 1,000; 36 train images instead of 1,281,167; 12 val images instead of 50,000"
    assert_refused(folder, off, expect="ilsvrc2012")


def test_a_folder_that_is_not_there(tmp_path):
    assert_refused(tmp_path / "none", "no such index")


def test_a_shard_of_another_source_is_refused(folder, tmp_path):
    other = make_source(tmp_path / "other")
    (other / "train" / "n00000002" / "n00000002_0.JPEG").write_bytes(encoded(picture(1), quality=50))
    build_index(other, folder / INDEX_NAME)
    make_shard(folder / INDEX_NAME, split="val", shard=0, of=COUNTS["val"], out=folder, recipe=RECIPE)
    assert_refused(folder, "made from other images than index.parquet lists")


def test_a_copied_shard_is_refused(folder):
    for suffix in ("tar", "idx", "json"):
        shutil.copy(folder / f"val-00000-of-00002.{suffix}", folder / f"val-00001-of-00002.{suffix}")
    assert_refused(folder, "val-00001-of-00002.json: is the record of val-00000-of-00002")


def test_a_cut_tar_is_refused(folder):
    with (folder / "val-00001-of-00002.tar").open("r+b") as file:
        file.truncate(1024)
    assert_refused(folder, "val-00001-of-00002.tar: has 1024 bytes")
