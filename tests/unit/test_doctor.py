"""The doctor as a command: the right findings, the right exit status, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone

SLURM = "Slurm's commands"
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return fresh_clone(tmp_path / "clone")


@pytest.fixture
def without_slurm(tmp_path: Path) -> str:
    """A PATH that has git and the environment's commands, and none of Slurm's."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for command in ("git", "sh"):
        (folder / command).symlink_to(shutil.which(command))
    return f"{Path(sys.executable).parent}:{folder}"


class Diagnosis:
    """What one call of the doctor gave."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        self.status = done.returncode
        self.findings = json.loads(done.stdout)["findings"]
        self.can_run = json.loads(done.stdout)["can_run"]

    def of(self, group: str, subject: str | None = None) -> list[dict[str, str]]:
        return [each for each in self.findings if each["group"] == group and subject in (None, each["subject"])]

    def one(self, group: str, subject: str) -> dict[str, str]:
        (found,) = self.of(group, subject)
        return found

    @property
    def missing(self) -> list[tuple[str, str]]:
        return [(each["group"], each["subject"]) for each in self.findings if each["mark"] == "missing"]


def diagnosed(clone: Clone, *options: str, **environ: str) -> Diagnosis:
    return Diagnosis(clone.run("fourminutes", "doctor", "--json", "--no-cluster", *options, **environ))


def rewrite(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)


# --- without Slurm, and with a plan or none ---------------------------------------------------------------------------


def test_without_slurm_the_demo_can_be_run(clone: Clone, without_slurm: str):
    diagnosis = diagnosed(clone, PATH=without_slurm)
    assert diagnosis.missing == []
    assert diagnosis.status == 0
    assert diagnosis.one("slurm", "Slurm")["mark"] == "note"
    assert "only plans with several nodes" in diagnosis.one("slurm", "Slurm")["found"]
    assert {each["subject"] for each in diagnosis.of("software")} >= {"Python", "torch", "DALI", "Snakemake", "DVC"}
    assert all("runs here" in each["found"] or "take turns" in each["found"] for each in diagnosis.of("jobs"))


def test_without_slurm_a_plan_of_several_nodes_cannot_be_run(clone: Clone, without_slurm: str):
    diagnosis = diagnosed(clone, "--plan", "config/plans/ilsvrc2012.yaml", PATH=without_slurm)
    assert diagnosis.status == 2
    assert diagnosis.one("slurm", "Slurm")["mark"] == "missing"
    assert "resnet50-lars-64k" in diagnosis.one("slurm", "Slurm")["found"]
    assert [each["mark"] for each in diagnosis.of("jobs")] == ["missing", "missing"]
    assert "image-net.org" in diagnosis.one("archives", "pictures")["to_do"]


def test_a_controller_that_does_not_answer_is_a_finding(clone: Clone, tmp_path: Path):
    if shutil.which("sinfo") is None:
        pytest.skip(f"{SLURM} are not here")
    config = "ClusterName=dead\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=1\nNodeName=n1\n"
    (tmp_path / "slurm.conf").write_text(config + "PartitionName=main Nodes=n1\n")
    diagnosis = diagnosed(clone, SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert diagnosis.one("slurm", "Slurm")["mark"] == "warn"
    assert "does not answer" in diagnosis.one("slurm", "Slurm")["found"]
    assert diagnosis.status == 0


def test_outside_of_a_clone_the_machine_alone_is_looked_at(tmp_path: Path, without_slurm: str):
    diagnosis = diagnosed(Clone(tmp_path), PATH=without_slurm)
    assert (diagnosis.status, diagnosis.of("plan"), diagnosis.of("jobs")) == (0, [], [])
    assert diagnosis.of("devices", "CPU")


@pytest.mark.parametrize("content", ["name: demo\nepochs: 3\n", ": {", "- a\n"])
def test_a_broken_plan_is_a_finding_beside_the_others(clone: Clone, without_slurm: str, content: str):
    (clone.folder / "config" / "plans" / "demo.yaml").write_text(content)
    diagnosis = diagnosed(clone, PATH=without_slurm)
    assert diagnosis.missing == [("plan", "plan")]
    assert diagnosis.status == 2
    assert diagnosis.of("software")


def test_a_broken_profile_is_a_finding(clone: Clone, without_slurm: str):
    (clone.folder / "profiles" / "slurm" / "profile.yaml").write_text("executor: [")
    found = diagnosed(clone, PATH=without_slurm).one("slurm", "profile")
    assert "is not YAML" in found["found"]


def test_for_reading_every_finding_is_a_line_with_what_to_do_below(clone: Clone, without_slurm: str):
    plan = ("--plan", "config/plans/ilsvrc2012.yaml")
    done = clone.run("fourminutes", "doctor", *plan, PATH=without_slurm, COLUMNS="80")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    marked = [line for line in lines if line[2:9].strip() in ("ok", "note", "warn", "missing")]
    column = next(line.index("its commands") for line in marked if "its commands" in line)
    assert all(line[column - 1] == " " and line[column] != " " for line in marked)
    assert any(line.strip().startswith("-> put or link there the folder") for line in lines)
    assert lines[-1].startswith("the plan cannot be run here: ")


def test_torch_that_cannot_be_imported_is_missing(clone: Clone, tmp_path: Path, without_slurm: str):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object')")
    path = os.pathsep.join(filter(None, [str(tmp_path / "broken"), os.environ.get("PYTHONPATH")]))
    diagnosis = diagnosed(clone, PATH=without_slurm, PYTHONPATH=path)
    assert diagnosis.missing == [("software", "torch")]
    assert "libcudart.so.13" in diagnosis.one("software", "torch")["found"]
    assert "make setup" in diagnosis.one("software", "torch")["to_do"]


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(clone: Clone) -> Path:
    """The three archives where the plan `small` wants them."""
    folder = clone.folder / "data" / "small-source"
    done = clone.run("fourminutes", "data", "synthesize", str(folder), "--classes", "2", "--train-per-class", "20")
    assert done.returncode == 0, done.stderr
    return folder


def of_small(clone: Clone, without_slurm: str, *options: str) -> Diagnosis:
    return diagnosed(clone, "--plan", "config/plans/small.yaml", *options, PATH=without_slurm)


def test_right_archives_are_found(clone: Clone, without_slurm: str, source: Path):
    diagnosis = of_small(clone, without_slurm)
    assert [(each["subject"], each["mark"]) for each in diagnosis.of("archives")] == [
        (TRAIN, "ok"),
        (VAL, "ok"),
        (DEVKIT, "ok"),
    ]
    assert "the archives' sizes" in diagnosis.one("file systems", "clone, data, work")["found"]
    assert diagnosis.status == 0


def test_wrong_archives_are_named_with_what_is_wrong(clone: Clone, without_slurm: str, source: Path):
    (source / DEVKIT).write_bytes((source / DEVKIT).read_bytes()[:-100])
    (source / TRAIN).write_bytes((source / VAL).read_bytes())
    (source / VAL).write_text("\n<!DOCTYPE html><html>Please log in</html>")
    diagnosis = of_small(clone, without_slurm)
    assert diagnosis.status == 2
    assert diagnosis.missing == [("archives", TRAIN), ("archives", VAL), ("archives", DEVKIT)]
    assert "where class tars belong" in diagnosis.one("archives", TRAIN)["found"]
    assert "is a web page" in diagnosis.one("archives", VAL)["found"]
    assert "is truncated" in diagnosis.one("archives", DEVKIT)["found"]


def test_a_shortened_archive_is_truncated(clone: Clone, without_slurm: str, source: Path):
    os.truncate(source / TRAIN, (source / TRAIN).stat().st_size // 2)
    os.truncate(source / VAL, 0)
    diagnosis = of_small(clone, without_slurm)
    assert "is truncated" in diagnosis.one("archives", TRAIN)["found"]
    assert "is no tar" in diagnosis.one("archives", VAL)["found"]


def test_the_official_archives_have_known_sizes_and_sums(clone: Clone, without_slurm: str, source: Path):
    plan = clone.folder / "config" / "plans" / "small.yaml"
    rewrite(plan, ("  shards: {train: 16, val: 2}", "  shards: {train: 16, val: 2}\n  expect: ilsvrc2012"))
    with (source / DEVKIT).open("ab") as file:  # another devkit of the official size: gzip ignores zeros at its end
        file.truncate(2_568_145)
    diagnosis = of_small(clone, without_slurm, "--checksums")
    assert "the official one 147,897,477,120" in diagnosis.one("archives", TRAIN)["found"]
    assert "the official one 6,744,924,160" in diagnosis.one("archives", VAL)["found"]
    assert "the official one fa75699e90414af021442c21a62c3abf" in diagnosis.one("archives", DEVKIT)["found"]


def test_an_extracted_tree_is_as_good(clone: Clone, without_slurm: str):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (clone.folder / "data" / "small-source" / split / wnid).mkdir(parents=True)
    diagnosis = of_small(clone, without_slurm)
    assert diagnosis.one("archives", "train")["mark"] == "ok"
    assert "2 class folders" in diagnosis.one("archives", "val")["found"]


# --- space ------------------------------------------------------------------------------------------------------------


def test_a_plan_that_writes_more_than_is_free_cannot_be_run(clone: Clone, without_slurm: str):
    rewrite(
        clone.folder / "config" / "plans" / "demo.yaml", ("train_per_class: 160", "train_per_class: 100_000_000_000")
    )
    diagnosis = diagnosed(clone, PATH=without_slurm)
    assert diagnosis.missing == [("file systems", "clone, data, work")]
    assert "needed: " in diagnosis.one("file systems", "clone, data, work")["found"]
    assert "data.root, work" in diagnosis.one("file systems", "clone, data, work")["to_do"]
    assert diagnosis.status == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_only_the_file_system_without_room_is_missing(clone: Clone, without_slurm: str, small_disk: Path):
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    plan.write_text(plan.read_text() + f"work: {small_disk}\n")
    diagnosis = diagnosed(clone, PATH=without_slurm)
    assert diagnosis.missing == [("file systems", "work")]
    assert f"tmpfs at {small_disk}" in diagnosis.one("file systems", "work")["found"]
    assert "checkpoints of 5 runs" in diagnosis.one("file systems", "work")["found"]
    assert diagnosis.one("file systems", "clone, data")["mark"] == "ok"


def test_a_clone_that_cannot_be_written_is_missing(without_slurm: str, small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    diagnosis = diagnosed(Clone(small_disk), PATH=without_slurm)
    assert diagnosis.missing == [("file systems", "clone")]
    assert any("cannot be written" in each["found"] for each in diagnosis.of("file systems", "clone"))


def test_nothing_is_left_behind(clone: Clone, without_slurm: str):
    before = sorted(path for path in clone.folder.rglob("*") if ".git/" not in str(path))
    diagnosed(clone, PATH=without_slurm)
    assert sorted(path for path in clone.folder.rglob("*") if ".git/" not in str(path)) == before


# --- locks ------------------------------------------------------------------------------------------------------------


def test_without_file_locks_dvc_is_told_to_use_hard_links(clone: Clone):
    from fourminutes.doctor.locks import lock_findings

    fault = "flock fails: Function not implemented"
    (told,) = lock_findings(clone.folder, fault, fix=False)
    assert (told.mark, "dvc config --local core.hardlink_lock true" in told.to_do) == ("warn", True)
    assert not (clone.folder / ".dvc" / "config.local").exists()
    (fixed,) = lock_findings(clone.folder, fault, fix=True)
    assert fixed.mark == "note"
    (known,) = lock_findings(clone.folder, fault, fix=False)
    assert known.mark == "ok"
    asked = clone.run("dvc", "config", "core.hardlink_lock")
    assert asked.stdout.strip() == "true"


# --- duration ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_tells_how_long_it_took_and_how_long_another_will_take(clone: Clone, without_slurm: str):
    record = Path("results") / "small" / "runs" / "resnet-small-sgd-64.json"
    (clone.folder / record).parent.mkdir(parents=True)
    shutil.copy2(Path(__file__).parents[2] / record, clone.folder / record)
    assert "resnet-small-sgd-64: took" in of_small(clone, without_slurm).one("duration", "finished")["found"]
    plan = clone.folder / "config" / "plans" / "small.yaml"
    rewrite(
        plan, ("epochs: 20", "epochs: 40"), ("shards: {train", "resplit: {train: 4000, val: 500}\n  shards: {train")
    )
    diagnosis = of_small(clone, without_slurm)
    estimate = diagnosis.one("duration", "resnet-small-sgd-64")["found"]
    assert f"scaled from {record}" in estimate
    assert diagnosis.of("duration", "in all")


def test_without_a_record_of_its_like_a_runs_time_is_not_known(clone: Clone, without_slurm: str):
    assert "before a first run" in diagnosed(clone, PATH=without_slurm).one("duration", "to be seen")["found"]
