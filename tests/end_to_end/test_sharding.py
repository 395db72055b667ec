"""The same shards, whatever the number of jobs and however often they were interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone, wait_until

from fourminutes.plan import Plan, load_plan
from fourminutes.record import Manifest, read_record

PLAN = """
name: small
data:
  dataset: small
  source: {kind: synthetic, classes: 4, train_per_class: 40, val_per_class: 6, side_px: 40}
  shards: {train: 12, val: 2}
  max_broken_percent: 20
"""
DATA = ["snakemake", "data", "--config", "plan=small.yaml"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = fresh_clone(tmp_path)
    (clone.folder / "small.yaml").write_text(PLAN)
    return clone


def plan(clone: Clone) -> Plan:
    return load_plan(clone.folder / "small.yaml")


def dataset_hash(clone: Clone) -> str:
    return read_record(clone.folder / plan(clone).manifest, Manifest).dataset_hash


def shards(clone: Clone) -> Path:
    data = plan(clone).data
    assert data is not None
    return clone.folder / data.folder


def make_anew(clone: Clone, cores: int) -> str:
    for path in shards(clone).glob("*-of-*"):
        path.unlink()
    done = clone.run(*DATA, "--cores", str(cores), "--forcerun", "shard")
    assert done.returncode == 0, done.stderr
    return dataset_hash(clone)


def kill_after_shards(clone: Clone, count: int) -> None:
    """Start sharding, and kill every process of it once `count` shards are there."""
    snakemake = clone.start(*DATA, "--cores", "1", "--forcerun", "shard")
    try:
        wait_until(snakemake, lambda: len(list(shards(clone).glob("*.json"))) >= count)
    finally:
        os.killpg(snakemake.pid, signal.SIGKILL)
        snakemake.wait()
    assert len(list(shards(clone).glob("*.json"))) < 14, "killed too late to have interrupted anything"


def test_one_job_two_jobs_and_a_killed_and_resumed_third_give_the_same_dataset_hash(clone: Clone):
    one_job = make_anew(clone, cores=1)
    assert make_anew(clone, cores=2) == one_job

    for path in shards(clone).glob("*-of-*"):
        path.unlink()
    kill_after_shards(clone, count=3)
    assert clone.run(*DATA, "--unlock").returncode == 0
    resumed = clone.run(*DATA)
    assert resumed.returncode == 0, resumed.stderr
    assert dataset_hash(clone) == one_job
    left = {path.name.split(".")[-1] for path in shards(clone).iterdir() if "-of-" in path.name}
    assert left == {"tar", "idx", "json"}
