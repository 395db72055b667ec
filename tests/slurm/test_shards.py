"""Shards as jobs of many: how many submissions, what each asks for, and what one bad shard costs the others."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm.conftest import copied
from support.clone import Clone, working
from support.cluster import Cluster, wait_until

PLAN = """
name: many
data:
  dataset: many
  source: {kind: imagenet, path: data/none}
  shards: {train: 1024, val: 1}
"""


def queue(*columns: str) -> list[list[str]]:
    """The jobs in the queue, by what squeue prints of each."""
    line = ["squeue", "--noheader", f"--Format={','.join(f'{column}:60' for column in columns)}"]
    return [row.split() for row in subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()]


@pytest.fixture
def held_partition(idle_cluster: Cluster) -> Iterator[None]:
    """A partition that takes jobs and starts none."""
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
    yield
    subprocess.run(["scancel", "--state=PENDING", "--partition=main"], check=True)
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)


def test_1024_shards_are_64_submissions_of_a_core_and_a_shards_memory(
    held_partition: None, site_clone: Callable[[str], Clone], tmp_path: Path
) -> None:
    clone = site_clone("many")
    (clone.folder / "config" / "plans" / "many.yaml").write_text(PLAN)
    planned = clone.run("snakemake", "data", "-n", "--config", "plan=many")
    folder = Path(re.search(r"output: (data/many-\w+)/index\.parquet", planned.stdout)[1])  # type: ignore[index]
    (clone.folder / folder).mkdir(parents=True)
    (clone.folder / folder / "index.parquet").touch()
    shards = [f"{folder}/train-{shard:05d}-of-01024.tar" for shard in range(1024)]
    line = ["snakemake", *shards, "--profile", "slurm", "--jobs", "1000", "--config", "plan=many"]
    submitted = re.compile("has been submitted with SLURM jobid")
    with working(clone, line, tmp_path / "said"):
        wait_until("64 submissions", lambda: len(submitted.findall((tmp_path / "said").read_text())) >= 64, 300)
        # One look after all submissions: Snakemake has then asked for every shard.
        wait_until("they are in the queue", lambda: len(queue("JobID")) >= 64)
        jobs = queue("NumCPUs", "MinMemory", "TimeLimit")
    assert len(jobs) == 64
    assert set(map(tuple, jobs)) == {("1", "1G", "2:40:00")}
    assert len(submitted.findall((tmp_path / "said").read_text())) == 64


def test_a_shard_that_fails_costs_its_finished_siblings_nothing(
    idle_cluster: Cluster, prepared: Clone, tmp_path: Path
) -> None:
    clone = copied(prepared, tmp_path)
    (folder,) = (clone.folder / "data").glob("steps-??????????")
    names = [f"train-{shard:05d}-of-00004" for shard in range(4)]
    # One picture of the drawn archives is cut off, and no shard may hold any such one now.
    plan = clone.folder / "config" / "plans" / "steps.yaml"
    plan.write_text(plan.read_text().replace("max_broken_percent: 5", "max_broken_percent: 0"))
    (clone.folder / "results/steps/manifest.json").unlink()
    command = ["snakemake", "data", "--profile", "slurm", "--config", "plan=steps"]
    finished: list[str] = []
    while not finished:  # they are made in any order, and the bad one may be the first
        for path in folder.glob("train-*"):
            path.unlink()
        failed = clone.run(*command)
        assert failed.returncode != 0
        finished = [name for name in names if (folder / f"{name}.json").exists()]
    assert len(finished) < len(names)
    before = {name: (folder / f"{name}.tar").stat().st_mtime_ns for name in finished}
    plan.write_text(plan.read_text().replace("max_broken_percent: 0", "max_broken_percent: 5"))
    done = clone.run(*command)
    assert done.returncode == 0, done.stderr
    assert {name: (folder / f"{name}.tar").stat().st_mtime_ns for name in finished} == before
    assert all((folder / f"{name}.json").exists() for name in names)
