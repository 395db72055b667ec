"""The drawn miniature: official layout, odd files, the same bytes again, learnable looks."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from fourminutes.data.draw import draw, look_of
from fourminutes.data.synthetic import synthesize
from fourminutes.errors import UserError
from fourminutes.plan import SyntheticSource

SOURCE = SyntheticSource(kind="synthetic", classes=3, train_per_class=20, val_per_class=4, side_px=40, seed=7)
ARCHIVES = ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]
DEVKIT = "ILSVRC2012_devkit_t12/data"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    synthesize(out, SOURCE)
    return out


def members(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def read(drawn: Path, archive: str) -> dict[str, bytes]:
    return members((drawn / archive).read_bytes())


def devkit(drawn: Path) -> dict[str, bytes]:
    return members(gzip.decompress((drawn / ARCHIVES[0]).read_bytes()))


def synsets(drawn: Path) -> np.ndarray:
    return loadmat(io.BytesIO(devkit(drawn)[f"{DEVKIT}/meta.mat"]), squeeze_me=True)["synsets"]


def truth(drawn: Path) -> list[int]:
    return [int(line) for line in devkit(drawn)[f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"].split()]


def leaf_wnids(drawn: Path) -> list[str]:
    return [str(row["WNID"]) for row in synsets(drawn) if row["num_children"] == 0]


def first_class(drawn: Path) -> dict[int, bytes]:
    """The training files of ID 1, by number."""
    wnid = leaf_wnids(drawn)[0]
    files = members(read(drawn, ARCHIVES[1])[f"{wnid}.tar"])
    return {int(re.fullmatch(rf"{wnid}_(\d+)\.JPEG", name)[1]): data for name, data in files.items()}


# --- layout ---------------------------------------------------------------------------------------------------------


def test_there_are_the_three_archives_and_nothing_else(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == ARCHIVES


def test_train_is_a_tar_of_a_tar_a_class(drawn):
    classes = read(drawn, ARCHIVES[1])
    assert list(classes) == [f"{wnid}.tar" for wnid in leaf_wnids(drawn)]
    for name, tar in classes.items():
        wnid = name.removesuffix(".tar")
        assert list(members(tar)) == [f"{wnid}_{number}.JPEG" for number in range(SOURCE.train_per_class)]


def test_val_is_flat_and_its_classes_are_shuffled(drawn):
    assert list(read(drawn, ARCHIVES[2])) == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 13)]
    assert Counter(truth(drawn)) == {1: 4, 2: 4, 3: 4}
    assert truth(drawn) != sorted(truth(drawn))


def test_meta_mat_has_the_official_fields_leaves_first(drawn):
    rows = synsets(drawn)
    assert rows.dtype.names == (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    assert [int(row["ILSVRC2012_ID"]) for row in rows] == list(range(1, len(rows) + 1))
    leaves, internal = rows[: SOURCE.classes], rows[SOURCE.classes :]
    assert [int(row["num_train_images"]) for row in leaves] == [20, 20, 20]
    assert all(row["num_children"] == 0 and row["children"].size == 0 for row in leaves)
    assert len(internal) > 0
    assert all(row["num_children"] == np.size(row["children"]) > 0 for row in internal)
    children = sorted(int(child) for row in internal for child in np.atleast_1d(row["children"]))
    assert children == list(range(1, len(rows)))  # a tree: each but the root has one parent


@pytest.mark.parametrize("seed", range(4))
def test_wnids_are_well_formed_but_no_real_ones_and_not_in_the_order_of_ids(seed, tmp_path):
    source = SyntheticSource(kind="synthetic", classes=2, train_per_class=8, val_per_class=1, side_px=32, seed=seed)
    synthesize(tmp_path, source)
    wnids = leaf_wnids(tmp_path)
    assert all(re.fullmatch(r"n9\d{7}", wnid) for wnid in wnids)
    assert wnids == sorted(wnids, reverse=True)


def test_tar_headers_have_neither_times_nor_owners(drawn):
    for archive in ARCHIVES:
        with tarfile.open(drawn / archive) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in tar} == {(0, 0, 0, "", "", b"0")}


# --- pictures -------------------------------------------------------------------------------------------------------


def test_odd_files_are_really_there(drawn):
    files = first_class(drawn)
    cmyk, png, rotated, grey, progressive = (Image.open(io.BytesIO(files[number])) for number in (1, 3, 5, 9, 11))
    assert (cmyk.format, cmyk.mode) == ("JPEG", "CMYK")
    assert (png.format, png.mode) == ("PNG", "RGB")
    assert rotated.getexif()[0x0112] == 6
    assert (grey.format, grey.mode) == ("JPEG", "L")
    assert progressive.info["progressive"]
    for image in (cmyk, png, rotated, grey, progressive):
        image.load()


def test_the_truncated_file_opens_but_does_not_decode(drawn):
    image = Image.open(io.BytesIO(first_class(drawn)[7]))
    assert image.format == "JPEG"
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_all_others_are_rgb_jpegs_that_decode_and_vary_in_size(drawn):
    files = {number: data for number, data in first_class(drawn).items() if number not in {1, 3, 5, 7, 9}}
    images = [Image.open(io.BytesIO(data)) for data in [*files.values(), *read(drawn, ARCHIVES[2]).values()]]
    coloured = [image for image in images if image.mode == "RGB"]
    assert len(coloured) >= len(images) - 1
    for image in images:
        image.load()
    assert {image.format for image in images} == {"JPEG"}
    assert len({image.size for image in images}) > len(images) / 2
    assert 30 < np.median([min(image.size) for image in images]) < 50


def test_the_first_thousand_looks_all_differ():
    looks = [look_of(number) for number in range(1000)]
    assert len(set(looks)) == 1000
    for cue in ("shape", "texture", "colour"):
        assert len({getattr(look, cue) for look in looks[:10]}) == 10


def test_pictures_of_one_class_differ():
    look = look_of(4)
    pictures = [draw(look, 40, np.random.default_rng(number)).resize((16, 16)) for number in range(8)]
    assert len({picture.tobytes() for picture in pictures}) == 8


# --- the same again -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(drawn, tmp_path):
    synthesize(tmp_path / "again", SOURCE)
    synthesize(tmp_path / "other", SOURCE.model_copy(update={"seed": 8}))
    for archive in ARCHIVES:
        assert (tmp_path / "again" / archive).read_bytes() == (drawn / archive).read_bytes()
        assert (tmp_path / "other" / archive).read_bytes() != (drawn / archive).read_bytes()


def test_no_picture_is_in_both_splits(drawn):
    train = {data for tar in read(drawn, ARCHIVES[1]).values() for data in members(tar).values()}
    val = set(read(drawn, ARCHIVES[2]).values())
    assert len(train) == 60
    assert len(val) == 12
    assert not train & val


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        synthesize(tmp_path / "file", SOURCE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
