"""Shards: the same bytes whatever happens, every image once, readable by those who have to read them."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from shard_sets import COUNTS, RECIPE, contents, encoded, make_set, make_source, picture

from fourminutes.data import wds
from fourminutes.data.index import build_index, read_rows
from fourminutes.data.manifest import INDEX_NAME
from fourminutes.data.shard import make_shard, shard_rows
from fourminutes.errors import UserError
from fourminutes.plan import ShardRecipe
from fourminutes.record import ShardRecord, read_record


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    return make_set(source, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def samples(shared_data, tmp_path_factory) -> Path:
    return make_set(shared_data / "samples", tmp_path_factory.mktemp("samples"))


def tars(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.tar"))


def samples_in(folder: Path, split: str) -> list[tuple[str, int, bytes]]:
    """Key, label and image of every sample, by the standard library's tar reader."""
    found = []
    for path in tars(folder, split):
        with tarfile.open(path) as tar:
            read = [(member.name, tar.extractfile(member).read()) for member in tar]
        for (image_name, image), (label_name, label) in zip(read[::2], read[1::2], strict=True):
            assert image_name.removesuffix(".jpg") == label_name.removesuffix(".cls")
            found.append((image_name.removesuffix(".jpg"), int(label), image))
    return found


def command(index: Path, out: Path, split: str, shard: int) -> list[str]:
    options = {"--split": split, "--shard": shard, "--of": COUNTS[split], "--out": out, "--seed": RECIPE.seed}
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "fourminutes", "data", "shard", str(index), *words]


# --- the shuffle ----------------------------------------------------------------------------------------------------


def test_every_row_is_in_one_shard_and_shards_are_balanced():
    shards = [shard_rows(1000, split="train", shard=shard, of=7, seed=5) for shard in range(7)]
    assert sorted(np.concatenate(shards)) == list(range(1000))
    assert {len(rows) for rows in shards} == {142, 143}


def test_the_permutation_does_not_depend_on_the_number_of_shards():
    def whole(of):
        return np.concatenate([shard_rows(1000, split="train", shard=shard, of=of, seed=5) for shard in range(of)])

    assert np.array_equal(whole(1), whole(7))


def test_seed_and_split_give_other_permutations():
    given = [shard_rows(100, split=split, shard=0, of=1, seed=seed) for split in COUNTS for seed in (0, 1)]
    assert len({tuple(rows) for rows in given}) == 4


def test_the_permutation_is_frozen():
    assert shard_rows(10, split="train", shard=0, of=1, seed=0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]


# --- the bytes ------------------------------------------------------------------------------------------------------


def test_all_images_arrive_untouched_with_their_labels(source, made):
    for split in COUNTS:
        rows = read_rows(made / INDEX_NAME, split)
        expected = {row.key: (row.label, (source / row.archive).read_bytes()) for row in rows}
        found = samples_in(made, split)
        assert len(found) == len(expected)
        assert {key: (label, image) for key, label, image in found} == expected


def test_members_have_no_owner_and_no_time(made):
    with tarfile.open(tars(made, "train")[0]) as tar:
        for member in tar:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert (member.mtime, member.mode, member.isreg()) == (0, 0o644, True)


def test_record_describes_the_shard(made):
    for path in tars(made, "train"):
        record = read_record(path.with_suffix(".json"), ShardRecord)
        content = path.read_bytes()
        assert (record.tar_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert record.index_sha256 == hashlib.sha256(path.with_suffix(".idx").read_bytes()).hexdigest()
        labels = Counter(sample.label for sample in wds.read_samples(content))
        assert record.images_per_label == labels
        assert (record.samples, record.class_count, record.recipe) == (labels.total(), 4, RECIPE)


def test_dali_index_is_what_wds2idx_writes(made, tmp_path):
    wds2idx = pytest.importorskip("wds2idx", reason="DALI is not installed")
    for path in tars(made, "val"):
        with wds2idx.IndexCreator(str(path), str(tmp_path / "index"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "index").read_bytes()


def test_other_order_and_parallel_processes_give_the_same_bytes(made, tmp_path):
    jobs = [(split, shard) for split, of in COUNTS.items() for shard in reversed(range(of))]
    running = [
        subprocess.Popen(command(made / INDEX_NAME, tmp_path, split, shard), stderr=subprocess.DEVNULL)
        for split, shard in jobs
    ]
    assert [job.wait() for job in running] == [0] * len(jobs)
    assert contents(tmp_path) == contents(made)


def test_moved_source_gives_the_same_bytes(source, made, tmp_path):
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", source, moved], check=True)
    make_shard(made / INDEX_NAME, split="val", shard=1, of=2, out=tmp_path / "set", recipe=RECIPE, source=moved)
    assert contents(tmp_path / "set").items() <= contents(made).items()


KILLED_AND_AGAIN = """
import hashlib, json, os, resource, signal, sys
from pathlib import Path
from fourminutes.data.shard import make_shard
from fourminutes.plan import ShardRecipe

index, out, recipe = Path(sys.argv[1]), Path(sys.argv[2]), ShardRecipe.model_validate_json(sys.argv[3])

def in_a_child(prepare):
    child = os.fork()
    if not child:
        prepare()
        make_shard(index, split="val", shard=0, of=2, out=out, recipe=recipe)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*")}
    print(json.dumps([os.WTERMSIG(status), found]), flush=True)
    return status

def kill_at(moment):
    def count(event, arguments):
        nonlocal moment
        if event in {"open", "os.rename", "os.remove"} and str(out) in str(arguments[0]):
            moment -= 1
            if moment < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(count)

def kill_within_the_tar():
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

moment = 0
while in_a_child(kill_at(moment)):
    moment += 1
    if moment % 2:  # else the next one is killed over what this one left
        in_a_child(lambda: None)
in_a_child(kill_within_the_tar)
in_a_child(lambda: None)
"""


def test_killed_at_any_moment_and_run_again_ends_the_same(made, tmp_path):
    files = {name: content for name, content in contents(made).items() if name.startswith("val-00000")}
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    arguments = [sys.executable, "-c", KILLED_AND_AGAIN, made / INDEX_NAME, tmp_path / "set", RECIPE.model_dump_json()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lived_with = [json.loads(line) for line in done.stdout.splitlines()]
    assert Counter(death for death, _ in lived_with)[signal.SIGKILL] >= 10
    assert lived_with[-2][0] == signal.SIGXFSZ
    for death, found in lived_with:
        if not death:
            assert found == expected
        elif "val-00000-of-00002.json" in found:  # a record means a whole shard
            assert expected.items() <= found.items()


# --- odd and broken images ------------------------------------------------------------------------------------------


def test_odd_files_of_the_samples_arrive_as_documented(samples, shared_data):
    records = [read_record(path, ShardRecord) for path in samples.glob("*-of-*.json")]
    converted = {note.member.rpartition("/")[2]: note.reason for record in records for note in record.converted}
    assert converted == {
        "n01440764_12329.JPEG": "CMYK",
        "n01491361_667.JPEG": "PNG",
        "ILSVRC2012_val_00000004.JPEG": "CMYK",
    }
    assert not any(record.refused for record in records)
    hashes, labels = documented(shared_data / "samples")
    found = samples_in(samples, "train") + samples_in(samples, "val")
    assert {key: label for key, label, _ in found} == labels
    for key, _, image in found:
        untouched = hashlib.sha256(image).hexdigest() == hashes[key]
        assert untouched == (f"{key}.JPEG" not in converted), key


def documented(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """SHA-256 and label of every image, by key, from manifest.tsv."""
    lines = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    wnids = sorted({row["wnid"] for row in rows})
    keys = [row["member"].rpartition("/")[2].removesuffix(".JPEG") for row in rows]
    hashes = {key: row["sha256"] for key, row in zip(keys, rows, strict=True)}
    return hashes, {key: wnids.index(row["wnid"]) for key, row in zip(keys, rows, strict=True)}


@pytest.mark.parametrize("check", ["decode", "header"])
def test_broken_images_are_left_out_and_recorded(tmp_path, check):
    source = make_source(tmp_path / "source")
    broken = {0: b"", 1: bytes(range(256)) * 9, 2: encoded(picture(1))[:-40]}
    for number, content in broken.items():
        (source / "train" / "n00000002" / f"n00000002_{number}.JPEG").write_bytes(content)
    build_index(source, tmp_path / "index")
    recipe = ShardRecipe(check=check)
    record = make_shard(
        tmp_path / "index", split="train", shard=0, of=1, out=tmp_path, recipe=recipe, max_broken_percent=9
    )
    reasons = {note.member: note.reason for note in record.refused}
    assert reasons == {
        "n00000002/n00000002_0.JPEG": "empty",
        "n00000002/n00000002_1.JPEG": "not an image",
        "n00000002/n00000002_2.JPEG": "truncated",
    }
    assert (record.samples, record.images_per_label) == (33, {0: 9, 1: 6, 2: 9, 3: 9})
    assert len(samples_in(tmp_path, "train")) == 33


def test_too_many_broken_images_stop_the_job_and_are_named(tmp_path):
    source = make_source(tmp_path / "source")
    (source / "val" / "n00000001" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    build_index(source, tmp_path / "index")
    with pytest.raises(UserError, match=r"1 of 12 images.*more than 8 %: \S*ILSVRC2012_val_00000001.JPEG \(empty\)"):
        make_shard(
            tmp_path / "index",
            split="val",
            shard=0,
            of=1,
            out=tmp_path / "set",
            recipe=ShardRecipe(),
            max_broken_percent=8,
        )
    assert list((tmp_path / "set").iterdir()) == []


def test_short_side_is_in_the_shard(source, tmp_path):
    build_index(source, tmp_path / "index")
    recipe = ShardRecipe(short_side_px=20)
    record = make_shard(tmp_path / "index", split="val", shard=0, of=1, out=tmp_path, recipe=recipe)
    assert (record.samples, record.converted) == (12, ())
    assert all(b"\x00\x14\x00\x1b" in image for _, _, image in samples_in(tmp_path, "val"))  # 20 by 27 in SOF


# --- readers --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves shards open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("split", COUNTS)
def test_the_webdataset_library_reads_every_sample(samples, split):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    urls = [str(path) for path in tars(samples, split)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pilrgb")
    found = [(sample["__key__"], sample["cls"]) for sample in dataset]
    del dataset
    gc.collect()  # or another test is blamed for those files
    assert found == [(key, label) for key, label, _ in samples_in(samples, split)]


@pytest.mark.parametrize("split", COUNTS)
def test_dali_decodes_every_sample(samples, split):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn, pipeline_def

    expected = samples_in(samples, split)

    @pipeline_def(batch_size=len(expected), num_threads=1, device_id=None)
    def pipeline():
        paths = tars(samples, split)
        indices = [str(path.with_suffix(".idx")) for path in paths]
        readers = fn.readers.webdataset
        images, labels = readers(paths=[str(path) for path in paths], index_paths=indices, ext=["jpg", "cls"])
        return fn.decoders.image(images, device="cpu", adjust_orientation=False), images, labels

    decoded, images, labels = pipeline().run()
    found = [(int(bytes(labels.at(k))), images.at(k).tobytes()) for k in range(len(expected))]
    assert found == [(label, image) for _, label, image in expected]
    assert all(decoded.at(k).shape[2] == 3 for k in range(len(expected)))


# --- what a user can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "of", "message"),
    [(3, 3, "numbered 0 to 2"), (-1, 3, "numbered 0 to 2"), (0, 37, "do not fill 37 shards")],
)
def test_senseless_numbers(made, tmp_path, shard, of, message):
    with pytest.raises(UserError, match=message):
        make_shard(made / INDEX_NAME, split="train", shard=shard, of=of, out=tmp_path / "set", recipe=RECIPE)
    assert not any((tmp_path / "set").glob("*"))


@pytest.fixture
def archived(shared_data, tmp_path) -> Path:
    """The samples' archives, copied so that they can be damaged, and an index of them."""
    subprocess.run(["cp", "-rp", shared_data / "samples", tmp_path / "archives"], check=True)
    build_index(tmp_path / "archives", tmp_path / "index")
    return tmp_path / "archives" / "ILSVRC2012_img_val.tar"


def test_archive_that_is_gone_is_named(archived, tmp_path):
    archived.unlink()
    assert_stops(tmp_path, "ILSVRC2012_img_val.tar: cannot be read: No such file")


def test_archive_that_changed_since_it_was_indexed_is_named(archived, tmp_path):
    os.utime(archived)
    assert_stops(tmp_path, "ILSVRC2012_img_val.tar: has changed since it was indexed")


def test_archive_that_was_cut_is_named(archived, tmp_path):
    os.truncate(archived, archived.stat().st_size // 2)
    assert_stops(tmp_path, "ILSVRC2012_img_val.tar: has changed", source=archived.parent)


def test_extracted_image_that_was_cut_is_named(tmp_path):
    source = make_source(tmp_path / "source")
    build_index(source, tmp_path / "index")
    os.truncate(source / "val" / "n00000002" / "ILSVRC2012_val_00000004.JPEG", 100)
    assert_stops(tmp_path, "ILSVRC2012_val_00000004.JPEG: ends within .*; it is truncated")


def assert_stops(folder: Path, message: str, **options: object) -> None:
    with pytest.raises(UserError, match=message):
        make_shard(folder / "index", split="val", shard=0, of=1, out=folder / "set", recipe=RECIPE, **options)
    assert not any((folder / "set").glob("*"))


def test_folder_that_is_a_file(made, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(UserError, match="cannot be written"):
            make_shard(made / INDEX_NAME, split="val", shard=0, of=2, out=out, recipe=RECIPE)


@contextmanager
def small_disk(folder: Path, options: str):
    """A file system in memory at `folder`."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("only root may mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_nothing(made, tmp_path):
    # 8 KiB: the index fits, the tar does not.  Then: everything but the record fits.
    tar_kib = -(-tars(made, "val")[0].stat().st_size // 4096) * 4
    for size_kib in (8, tar_kib + 4):
        with small_disk(tmp_path / str(size_kib), f"size={size_kib}k") as disk:
            with pytest.raises(UserError, match="the disk is full") as stopped:
                make_shard(made / INDEX_NAME, split="val", shard=0, of=2, out=disk, recipe=RECIPE)
            assert isinstance(stopped.value.__cause__, OSError)
            assert stopped.value.__cause__.errno == errno.ENOSPC
            assert list(disk.iterdir()) == []


def test_read_only_file_system(made, tmp_path):
    with small_disk(tmp_path / "disk", "ro") as disk, pytest.raises(UserError, match="read-only"):
        make_shard(made / INDEX_NAME, split="val", shard=0, of=2, out=disk, recipe=RECIPE)


def test_a_failure_leaves_the_older_shard_whole(archived, tmp_path):
    out = tmp_path / "set"
    options = {"split": "val", "shard": 0, "of": 1, "out": out, "recipe": RECIPE}
    make_shard(tmp_path / "index", **options)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    archived.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        make_shard(tmp_path / "index", **options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
