"""The index: labels, the place of every image's bytes, and what is refused with one clear line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from fourminutes.data.index import build_index, read_index, read_rows, sample_key
from fourminutes.errors import UserError

WNIDS = ("n01440764", "n01443537", "n02129604")
PARENT_WNID = "n00001740"
OTHER_WNID = "n04074963"
DEVKIT = "ILSVRC2012_devkit_t12"
META = f"{DEVKIT}/data/meta.mat"
GROUND_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"


# --- a miniature ImageNet, whose pictures tell where they belong ------------------------------------------------------


def packed(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return out.getvalue()


def meta_mat() -> bytes:
    wnids = (*reversed(WNIDS), PARENT_WNID)
    synsets = np.zeros(len(wnids), [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    synsets["ILSVRC2012_ID"] = range(1, len(wnids) + 1)
    synsets["WNID"] = wnids
    synsets["num_children"] = [0] * len(WNIDS) + [len(WNIDS)]
    out = io.BytesIO()
    savemat(out, {"synsets": synsets})
    return out.getvalue()


def class_pictures(wnid: str) -> dict[str, bytes]:
    return {f"{wnid}_{number}.JPEG": f"{wnid} {number}".encode() * number for number in (7, 30, 100)}


VAL_PICTURES = {f"ILSVRC2012_val_{number:08d}.JPEG": b"val %d" % number for number in range(1, 6)}
VAL_IDS = (3, 1, 2, 2, 1)  # ILSVRC2012_ID i is the i-th of the reversed WNIDS
VAL_WNIDS = tuple(WNIDS[3 - identifier] for identifier in VAL_IDS)


def write_train_tar(folder: Path, classes: dict[str, bytes]) -> None:
    (folder / "ILSVRC2012_img_train.tar").write_bytes(packed(classes))


def class_tars() -> dict[str, bytes]:
    return {f"{wnid}.tar": packed(class_pictures(wnid)) for wnid in reversed(WNIDS)}


def write_val_tar(folder: Path, pictures: dict[str, bytes] = VAL_PICTURES) -> None:
    (folder / "ILSVRC2012_img_val.tar").write_bytes(packed(pictures))


def write_devkit(folder: Path, files: dict[str, bytes] | None = None) -> None:
    (folder / f"{DEVKIT}.tar.gz").write_bytes(gzip.compress(packed(devkit_files() if files is None else files)))


def devkit_files(ids=VAL_IDS) -> dict[str, bytes]:
    return {META: meta_mat(), GROUND_TRUTH: "".join(f"{identifier}\n" for identifier in ids).encode()}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    write_train_tar(folder, class_tars())
    write_val_tar(folder)
    write_devkit(folder)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "index.parquet"


def extract(folder: Path, *parts: str) -> None:
    """Replace archives by what is extracted from them, as people do: `train`, `val` and `devkit`."""
    if "train" in parts:
        with tarfile.open(folder / "ILSVRC2012_img_train.tar") as outer:
            for member in outer:
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    inner.extractall(folder / "train" / Path(member.name).stem, filter="data")
        (folder / "ILSVRC2012_img_train.tar").unlink()
    if "val" in parts:
        with tarfile.open(folder / "ILSVRC2012_img_val.tar") as archive:
            archive.extractall(folder / "val", filter="data")
        (folder / "ILSVRC2012_img_val.tar").unlink()
    if "devkit" in parts:
        with tarfile.open(folder / f"{DEVKIT}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        (folder / f"{DEVKIT}.tar.gz").unlink()


def sort_val_by_class(folder: Path, wnids: dict[str, str]) -> None:
    for name, wnid in wnids.items():
        (folder / "val" / wnid).mkdir(exist_ok=True)
        (folder / "val" / name).rename(folder / "val" / wnid / name)


def bytes_of(folder: Path, image) -> bytes:
    with (folder / image.archive).open("rb") as file:
        file.seek(image.offset)
        return file.read(image.length)


def found_in(folder: Path, out: Path) -> dict[str, list[tuple[str, int, bytes]]]:
    """What the index of `folder` leads to: member, label and bytes, by split."""
    build_index(folder, out, workers=2)
    return {
        split: [(image.member, image.label, bytes_of(folder, image)) for image in read_rows(out, split)]
        for split in ("train", "val")
    }


def expected() -> dict[str, list[tuple[str, int, bytes]]]:
    return {
        "train": [
            (f"{wnid}/{name}", label, content)
            for label, wnid in enumerate(WNIDS)
            for name, content in sorted(class_pictures(wnid).items())
        ],
        "val": [
            (name, WNIDS.index(wnid), content)
            for (name, content), wnid in zip(VAL_PICTURES.items(), VAL_WNIDS, strict=True)
        ],
    }


# --- labels and bytes -------------------------------------------------------------------------------------------------


def manifest_of(data: Path) -> list[dict[str, str]]:
    plain = data / "manifest.tsv"
    text = plain.read_text() if plain.exists() else gzip.decompress((data / "manifest.tsv.gz").read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


@pytest.mark.parametrize("name", ["tiny", "samples"])
def test_every_real_image_has_its_label_and_its_bytes(shared_data, out, name):
    data = shared_data / name
    with (data / "classes.tsv").open() as file:
        classes = sorted(row["WNID"] for row in csv.DictReader(file, delimiter="\t"))
    manifest = manifest_of(data)

    summary = build_index(data, out)

    assert read_index(out).classes == tuple(classes)
    assert summary.train_images + summary.val_images == len(manifest)
    for split in ("train", "val"):
        found = {
            image.member.rpartition("/")[2]: (image.label, hashlib.sha256(bytes_of(data, image)).hexdigest())
            for image in read_rows(out, split)
        }
        assert found == {
            row["member"]: (classes.index(row["wnid"]), row["sha256"]) for row in manifest if row["split"] == split
        }


def test_real_pictures_extracted_are_the_same_images_in_the_same_order(shared_data, tmp_path, out):
    extracted = tmp_path / "samples"
    shutil.copytree(shared_data / "samples", extracted, copy_function=shutil.copyfile)
    extracted.chmod(0o755)
    packed_images = found_in(extracted, out)
    extract(extracted, "train", "val", "devkit")

    assert found_in(extracted, out) == packed_images
    sort_val_by_class(
        extracted, {row["member"]: row["wnid"] for row in manifest_of(extracted) if row["split"] == "val"}
    )
    shutil.rmtree(extracted / DEVKIT)
    assert found_in(extracted, out) == packed_images


PARTS = ("train", "val", "devkit")


@pytest.mark.parametrize("parts", [parts for n in range(4) for parts in itertools.combinations(PARTS, n)])
def test_archives_and_extracted_folders_may_be_mixed(source, out, parts):
    extract(source, *parts)

    assert found_in(source, out) == expected()


def test_val_by_class_needs_no_devkit(source, out):
    extract(source, "val")
    sort_val_by_class(source, dict(zip(VAL_PICTURES, VAL_WNIDS, strict=True)))
    (source / "val" / "valprep.sh").write_text("mv ...")
    (source / f"{DEVKIT}.tar.gz").unlink()

    assert found_in(source, out) == expected()


def test_what_systems_leave_in_folders_is_no_image(source, out):
    extract(source, "train", "val")
    for folder in (source / "train", source / "train" / WNIDS[0], source / "val"):
        (folder / "._n01440764_7.JPEG").write_bytes(b"resource fork")
        (folder / "Thumbs.db").write_bytes(b"thumbs")
        (folder / ".DS_Store").write_bytes(b"store")

    assert found_in(source, out) == expected()


@pytest.mark.parametrize("ending", [".jpeg", ".jpg", ".JPG", ".png"])
def test_pictures_are_told_by_any_of_their_usual_endings(source, out, ending):
    extract(source, "train")
    for picture in (source / "train").glob("*/*.JPEG"):
        picture.rename(picture.with_suffix(ending))

    assert [content for *_, content in found_in(source, out)["train"]] == [
        content for *_, content in expected()["train"]
    ]


def test_folders_that_are_linked_are_followed(source, tmp_path, out):
    extract(source, "train")
    (source / "train").rename(tmp_path / "elsewhere")
    (source / "train").symlink_to(tmp_path / "elsewhere")

    assert found_in(source, out) == expected()


def test_val_pictures_packed_in_any_order_under_a_dot_keep_their_numbers(source, out):
    write_val_tar(source, {f"./{name}": VAL_PICTURES[name] for name in reversed(VAL_PICTURES)})

    assert found_in(source, out) == expected()


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_file_says_what_was_indexed(source, out):
    summary = build_index(source, out)
    index = read_index(out)

    assert (summary.classes, summary.train_images, summary.val_images) == (3, 9, 5)
    assert index.source == source
    assert index.classes == WNIDS
    assert index.images == {"train": 9, "val": 5}
    for name, stamp in index.archives.items():
        assert (stamp.size, stamp.mtime_ns) == ((source / name).stat().st_size, (source / name).stat().st_mtime_ns)
    assert set(index.archives) == {"ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"}


def test_the_columns_are_those_that_are_documented(source, out):
    build_index(source, out)
    table = pq.read_table(out)

    assert dict(zip(table.column_names, map(str, table.schema.types), strict=True)) == {
        "split": "string",
        "wnid": "string",
        "label": "int32",
        "member": "string",
        "archive": "string",
        "offset": "int64",
        "length": "int64",
    }
    assert table["split"].to_pylist() == ["train"] * 9 + ["val"] * 5
    assert [WNIDS[label] for label in table["label"].to_pylist()] == table["wnid"].to_pylist()


def test_the_same_source_gives_the_same_rows_by_any_number_of_workers(source, tmp_path):
    for workers in (1, 7):
        build_index(source, tmp_path / f"{workers}.parquet", workers=workers)

    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "7.parquet").read_bytes()


@pytest.mark.parametrize("rows_per_group", [1, 4, 2**16])
@pytest.mark.parametrize("rows", [[], [0], [4, 0, 2], [3, 3, 1], [0, 1, 2, 3, 4]])
def test_rows_come_in_the_order_asked_for(source, out, rows, rows_per_group, monkeypatch):
    monkeypatch.setattr("fourminutes.data.index._ROWS_PER_GROUP", rows_per_group)
    build_index(source, out)

    for split in ("train", "val"):
        everything = read_rows(out, split)
        assert read_rows(out, split, np.array(rows, dtype=np.int64)) == [everything[row] for row in rows]


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_outside_its_split_is_never_another_splits(source, out, row):
    build_index(source, out)

    with pytest.raises(IndexError, match="val has rows 0 to 4"):
        read_rows(out, "val", np.array([row]))


def test_a_sample_key_ends_before_the_first_dot():
    assert sample_key("n01440764/n01440764_10026.JPEG") == "n01440764_10026"
    assert sample_key("a.b.c.png") == "a_b_c"


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(source: Path, out: Path) -> str:
    """The one line with which indexing stops; nothing may be left behind."""
    with pytest.raises(UserError) as refused:
        build_index(source, out, workers=2)
    message = str(refused.value)
    assert "\n" not in message
    assert ";" in message, "no way out is given"
    assert not out.parent.exists() or not list(out.parent.iterdir()), "something half-written is left"
    return message


@pytest.mark.parametrize(
    ("missing", "instead"),
    [("ILSVRC2012_img_train.tar", "train"), ("ILSVRC2012_img_val.tar", "val"), (f"{DEVKIT}.tar.gz", DEVKIT)],
)
def test_a_missing_archive_is_named_with_its_origin(source, out, missing, instead):
    (source / missing).unlink()

    message = refusal(source, out)

    assert str(source / missing) in message
    assert f"no folder {instead} beside it" in message
    assert "image-net.org/challenges/LSVRC/2012 (registration needed)" in message


def test_a_missing_source_is_named(tmp_path, out):
    assert f"{tmp_path / 'absent'}: no such folder" in refusal(tmp_path / "absent", out)


@pytest.mark.parametrize("archive", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7])
def test_a_truncated_archive_is_named(source, out, archive, kept):
    path = source / archive
    contents_end = len(path.read_bytes().rstrip(b"\0"))
    os.truncate(path, int(contents_end * kept))

    message = refusal(source, out)

    assert str(path) in message
    assert "truncated" in message


def test_a_truncated_class_tar_is_named(source, out):
    classes = class_tars()
    classes[f"{WNIDS[1]}.tar"] = classes[f"{WNIDS[1]}.tar"].rstrip(b"\0")
    write_train_tar(source, classes)

    message = refusal(source, out)

    assert f"ILSVRC2012_img_train.tar: {WNIDS[1]}.tar: is truncated" in message
    assert f"{WNIDS[1]}_" in message


@pytest.mark.parametrize("name", ["/n1.JPEG", "../n1.JPEG"])
def test_an_unsafe_path_in_a_class_tar_is_named(source, out, name):
    write_train_tar(source, class_tars() | {f"{OTHER_WNID}.tar": packed({name: b"x"})})

    assert f"{OTHER_WNID}.tar: member {name} leads out of the archive" in refusal(source, out)


@pytest.mark.parametrize("name", ["tiger.tar", "n123.tar", "n01440764", "readme.txt"])
def test_what_is_no_class_tar_is_named(source, out, name):
    write_train_tar(source, class_tars() | {name: packed({"x.JPEG": b"x"})})

    assert f"member {name} is no class tar" in refusal(source, out)


def test_a_folder_that_is_no_class_is_named(source, out):
    extract(source, "train")
    (source / "train" / "lost+found").mkdir()

    assert f"{source / 'train' / 'lost+found'}: is no class folder" in refusal(source, out)


def test_a_class_without_images_is_named(source, out):
    write_train_tar(source, class_tars() | {f"{OTHER_WNID}.tar": packed({"readme.txt": b"none"})})
    assert f"{OTHER_WNID}.tar: holds no pictures" in refusal(source, out)

    write_train_tar(source, class_tars())
    extract(source, "train")
    (source / "train" / OTHER_WNID).mkdir()
    assert f"{source / 'train' / OTHER_WNID}: holds no pictures" in refusal(source, out)


def test_a_train_archive_without_classes_is_named(source, out):
    write_train_tar(source, {})

    assert "ILSVRC2012_img_train.tar: holds no classes" in refusal(source, out)


def test_a_class_packed_twice_is_named(source, out):
    write_train_tar(source, class_tars() | {f"./{WNIDS[0]}.tar": packed(class_pictures(WNIDS[0]))})

    assert f"holds {WNIDS[0]}.tar twice" in refusal(source, out)


@pytest.mark.parametrize("other", ["n01440764_7.png", "sub/n01440764_7.JPEG"])
def test_two_images_that_would_be_one_sample_are_named(source, out, other):
    pictures = class_pictures(WNIDS[0]) | {other: b"again"}
    write_train_tar(source, class_tars() | {f"{WNIDS[0]}.tar": packed(pictures)})

    message = refusal(source, out)

    assert f"{WNIDS[0]}/{other}" in message
    assert f"{WNIDS[0]}/n01440764_7.JPEG" in message


def test_a_val_class_that_train_lacks_is_named(source, out):
    extract(source, "val")
    sort_val_by_class(source, dict.fromkeys(VAL_PICTURES, OTHER_WNID))

    assert f"has pictures of {OTHER_WNID}" in refusal(source, out)


def test_a_val_folder_that_is_half_sorted_is_refused(source, out):
    extract(source, "val")
    sort_val_by_class(source, {next(iter(VAL_PICTURES)): WNIDS[0]})

    assert "move every picture into its class folder, or none" in refusal(source, out)


@pytest.mark.parametrize("file", [META, GROUND_TRUTH])
@pytest.mark.parametrize("extracted", [False, True], ids=["archive", "folder"])
def test_a_devkit_without_one_of_its_files_says_which(source, out, file, extracted):
    files = devkit_files()
    del files[file]
    write_devkit(source, files)
    if extracted:
        extract(source, "devkit")

    message = refusal(source, out)

    assert file.removeprefix(f"{DEVKIT}/") in message
    assert str(source / DEVKIT) in message


@pytest.mark.parametrize("content", [b"", b"no MATLAB file " * 100, meta_mat()[:300]], ids=["empty", "text", "cut"])
def test_a_meta_mat_that_cannot_be_read_is_named(source, out, content):
    write_devkit(source, devkit_files() | {META: content})

    assert "data/meta.mat: cannot be read as a MATLAB file" in refusal(source, out)


@pytest.mark.parametrize("content", [{"other": 1}, {"synsets": 1}, {"synsets": {"WNID": "n01440764"}}])
def test_a_meta_mat_without_synsets_is_named(source, out, content):
    mat = io.BytesIO()
    savemat(mat, content)
    write_devkit(source, devkit_files() | {META: mat.getvalue()})

    assert "data/meta.mat: has no table `synsets`" in refusal(source, out)


def test_a_damaged_devkit_archive_is_named(source, out):
    path = source / f"{DEVKIT}.tar.gz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html></html>", b"", whole[:100] + bytes(100) + whole[200:]):
        path.write_bytes(damaged)
        assert str(path) in refusal(source, out)


@pytest.mark.parametrize("ids", [VAL_IDS[:-1], (*VAL_IDS, 1), ()], ids=["short", "long", "empty"])
def test_a_ground_truth_of_the_wrong_length_is_refused(source, out, ids):
    write_devkit(source, devkit_files(ids))

    message = refusal(source, out)

    assert "holds 5 pictures" in message
    assert f"{len(ids)} lines" in message


@pytest.mark.parametrize("identifier", ["0", "-1", "4", "9", "cat", "1.0"])  # 4 is the parent of all classes
def test_a_ground_truth_with_an_id_of_no_leaf_names_the_line(source, out, identifier):
    write_devkit(source, devkit_files((3, 1, identifier, 2, 1)))

    assert f"line 3: '{identifier}' is no ILSVRC2012_ID of a leaf class" in refusal(source, out)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000006.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"])
def test_a_val_picture_with_a_number_of_its_own_is_named(source, out, name):
    write_val_tar(source, dict(list(VAL_PICTURES.items())[:4]) | {name: b"x"})

    assert f"{name} is not numbered from 1 to 5" in refusal(source, out)


def test_a_picture_whose_name_is_no_text_is_named(source, out):
    extract(source, "train")
    (source / "train" / WNIDS[0] / os.fsdecode(b"caf\xe9.JPEG")).write_bytes(b"x")

    assert "caf\\udce9.JPEG" in refusal(source, out)


def test_a_picture_that_is_a_broken_link_is_named(source, out):
    extract(source, "train")
    broken = source / "train" / WNIDS[0] / "n01440764_8.JPEG"
    broken.symlink_to(source / "absent.JPEG")

    assert f"{broken}: cannot be read" in refusal(source, out)


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(source, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")

    with pytest.raises(UserError, match=r"file/index\.parquet: cannot be written"):
        build_index(source, in_the_way / "index.parquet")


def test_an_index_that_was_there_stays_when_indexing_fails(source, out):
    build_index(source, out)
    before = out.read_bytes()
    (source / "ILSVRC2012_img_val.tar").write_bytes(b"damaged")

    with pytest.raises(UserError):
        build_index(source, out)

    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_what_is_no_index_is_refused(source, out):
    with pytest.raises(UserError, match="no such index"):
        read_index(out)
    out.parent.mkdir()
    out.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(UserError, match="cannot be read as an index"):
        read_rows(out, "train")
    build_index(source, out)
    pq.write_table(pq.read_table(out).replace_schema_metadata({}), out)
    with pytest.raises(UserError, match="is no index of this version"):
        read_index(out)
