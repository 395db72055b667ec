"""Verify: every wrong byte is found, and its shard named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_sets import RECIPE, contents, make_set, make_source

from fourminutes.data import wds
from fourminutes.data.manifest import INDEX_NAME, make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.data.verify import verify
from fourminutes.errors import UserError
from fourminutes.record import Manifest

STEM = "train-00001-of-00003"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = make_set(make_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("made"))
    return folder, make_manifest(folder, out=folder / "manifest.json", expect=None)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the set that a test may spoil."""
    return shutil.copytree(made[0], tmp_path / "set")


@pytest.fixture
def manifest(made) -> Manifest:
    return made[1]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_sound_set_has_no_problems(folder, manifest):
    assert verify(folder, None) == []
    assert verify(folder, manifest) == []


@pytest.mark.parametrize("position", [0, 300, 511, 512, 700, -1, -1025, -1500, -2000])
def test_any_flipped_byte_is_found_and_its_shard_named(folder, manifest, position):
    flip(folder / f"{STEM}.tar", position)
    for held_against in (None, manifest):
        [problem] = verify(folder, held_against)
        assert f"{STEM}.tar: its SHA-256 is not that of the record" in problem


def test_the_first_sample_that_does_not_read_is_named(folder):
    tar = folder / f"{STEM}.tar"
    third = list(wds.read_samples(tar.read_bytes()))[2]
    flip(tar, tar.read_bytes().index(bytes(third.image)))
    assert f"damaged in sample {third.key};" in verify(folder, None)[0]


def test_a_damaged_header_is_placed(folder):
    tar = folder / f"{STEM}.tar"
    samples = list(wds.read_samples(tar.read_bytes()))
    flip(tar, tar.read_bytes().index(f"{samples[4].key}.cls".encode()))
    assert f"damaged after sample {samples[3].key};" in verify(folder, None)[0]


def test_a_cut_tar_is_named(folder):
    tar = folder / f"{STEM}.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert f"{STEM}.tar: has " in verify(folder, None)[0]


@pytest.mark.parametrize(
    ("suffix", "message"), [("tar", "cannot be read"), ("idx", "--rebuild-index"), ("json", "no such record")]
)
def test_a_missing_file_is_named(folder, manifest, suffix, message):
    (folder / f"{STEM}.{suffix}").unlink()
    for held_against in (None, manifest):
        [problem] = verify(folder, held_against)
        assert f"{STEM}.{suffix}: {message}" in problem or f"{STEM}.idx: cannot be read" in problem
        assert message in problem


def test_a_shard_without_any_file_is_missed(folder):
    for path in folder.glob(f"{STEM}.*"):
        path.unlink()
    assert [f"{STEM}.json: no such record" in problem for problem in verify(folder, None)] == [True]


@pytest.mark.parametrize("spoil", ["missing", "wrong"])
def test_an_index_is_written_again_from_its_tar(folder, made, spoil):
    index = folder / f"{STEM}.idx"
    index.unlink() if spoil == "missing" else flip(index, 20)
    assert verify(folder, None) != []
    assert verify(folder, None, rebuild_index=True) == []
    assert contents(folder) == contents(made[0])


def test_an_index_is_not_made_from_a_damaged_tar(folder):
    (folder / f"{STEM}.idx").unlink()
    flip(folder / f"{STEM}.tar", 100)
    problems = verify(folder, None, rebuild_index=True)
    assert any(f"{STEM}.idx: cannot be made from the tar" in problem for problem in problems)
    assert not (folder / f"{STEM}.idx").exists()


def test_a_shard_made_in_another_way_differs_from_the_manifest(folder, manifest):
    other = RECIPE.model_copy(update={"seed": 4})
    make_shard(folder / INDEX_NAME, split="train", shard=1, of=3, out=folder, recipe=other)
    assert verify(folder, None) == []
    assert any(f"{STEM}: its record differs from the manifest" in problem for problem in verify(folder, manifest))


def test_a_shard_of_another_set_is_not_in_the_manifest(folder, manifest):
    make_shard(folder / INDEX_NAME, split="val", shard=0, of=1, out=folder, recipe=RECIPE)
    [problem] = verify(folder, manifest)
    assert "val-00000-of-00001: is not in the manifest" in problem


def test_a_manifest_that_was_edited_is_found(folder, manifest):
    edited = manifest.model_copy(update={"classes": (*manifest.classes[:-1], "n99999999")})
    [problem] = verify(folder, edited)
    assert "does not agree with its own dataset hash" in problem


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match="holds no shards"):
        verify(tmp_path, None)
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path / "none", None)
