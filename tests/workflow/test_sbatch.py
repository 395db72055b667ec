"""The sbatch lines that Slurm's executor makes of the rules, by its own function; no cluster is needed."""

from __future__ import annotations

import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_slurm import validation
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from support.clone import Clone, fresh_clone

PLAN = """
name: lines
data:
  dataset: lines
  source: {kind: imagenet, path: data/none}
defaults: {threads: 4, loader: {threads: 6}, batch: {global_batch: 256, per_device: 8}}
runs:
  cpu: {}
  cpu-4-nodes: {processes: 4, processes_per_node: 1}
  gpu: {device: gpu}
  gpu-8: {device: gpu, processes: 8}
  gpu-4x8: {device: gpu, processes: 32, processes_per_node: 8}
scaling:
  real: {run: gpu-8, world_sizes: [1, 4, 8, 32], processes_per_node: 8}
  held: {run: cpu, world_sizes: [1, 4], processes_per_node: 1, input: synthetic}
comm: {device: gpu, processes: 32, processes_per_node: 8, threads: 4}
"""
SIZES = {
    "cpu": "--ntasks=1 --cpus-per-task=10 --signal=USR1@120",
    "cpu-4-nodes": "--ntasks=4 --cpus-per-task=10 --signal=USR1@120",
    "gpu": "--ntasks=1 --cpus-per-task=10 --signal=USR1@120 --gpus-per-node=1",
    "gpu-8": "--ntasks-per-node=8 --cpus-per-task=10 --signal=USR1@120 --gpus-per-node=8",
    "gpu-4x8": "--ntasks-per-node=8 --cpus-per-task=10 --signal=USR1@120 --gpus-per-node=8",
}
SERIES = {
    "real-1": "--nodes=1 --requeue --ntasks=1 --cpus-per-task=10 --exclusive --gpus-per-node=1",
    "real-4": "--nodes=1 --requeue --ntasks-per-node=4 --cpus-per-task=10 --exclusive --gpus-per-node=4",
    "real-8": "--nodes=1 --requeue --ntasks-per-node=8 --cpus-per-task=10 --exclusive --gpus-per-node=8",
    "real-32": "--nodes=4 --requeue --ntasks-per-node=8 --cpus-per-task=10 --exclusive --gpus-per-node=8",
    "held-1": "--nodes=1 --requeue --ntasks=1 --cpus-per-task=10 --exclusive",
    "held-4": "--nodes=4 --requeue --ntasks=4 --cpus-per-task=10 --exclusive",
}
NODES = {"cpu-4-nodes": 4, "gpu-4x8": 4}


class Resources(dict[str, Any]):
    """A job's resources as the executor takes them: by key, and by name."""

    __getattr__ = dict.__getitem__


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = fresh_clone(tmp_path_factory.mktemp("lines"))
    (clone.folder / "config" / "plans" / "lines.yaml").write_text(PLAN)
    return clone


def jobs(clone: Clone, *prefix: str) -> dict[str, SimpleNamespace]:
    """What Snakemake hands to its executor for every training and measurement, by a dry run; by log file's stem."""
    done = clone.run(*prefix, "snakemake", "train", "-n", "--profile", "slurm", "--config", "plan=lines")
    assert done.returncode == 0, done.stderr
    found = {}
    for block in re.split(r"\n(?=rule )", done.stdout):
        if not re.match(r"rule (train_run|comm_bench|measure_scaling):", block):
            continue
        stem = re.search(r"log: .*/(.*)\.log", block)[1]  # type: ignore[index]
        threads = re.search(r"threads: (\d+)", block)
        found[stem] = SimpleNamespace(
            resources=Resources(_parsed(re.search(r"resources: (.*)", block)[1])),  # type: ignore[index]
            threads=int(threads[1]) if threads else 1,
        )
    return found


def _parsed(resources: str) -> dict[str, Any]:
    pairs = (pair.partition("=")[::2] for pair in resources.split(", "))
    return {key: int(value) if value.isdecimal() else value for key, value in pairs}


def sbatch(job: SimpleNamespace) -> str:
    """The options that the executor gives to sbatch, less those that are for itself."""
    validation.validate_slurm_extra(job)
    own = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "", "partition": "", "workdir": ""}
    settings = SimpleNamespace(requeue=True, no_requeue=False, qos=None, reservation=None)
    line = shlex.split(get_submit_command(job, own, settings))
    itself = ("sbatch", "--parsable", "--job-name", "u", "--output", "l", "--export=ALL", "--comment", "c")
    return " ".join(word for word in line if word not in itself)


@pytest.mark.parametrize("run", SIZES)
def test_a_training_asks_for_what_its_plan_says(planned: Clone, run: str) -> None:
    line = sbatch(jobs(planned)[run])
    nodes = f"--nodes={NODES.get(run, 1)}"
    assert line == f"-t 720 --mem-per-cpu 4000 {nodes} --requeue {SIZES[run]}"


def test_a_measurement_has_its_nodes_for_itself(planned: Clone) -> None:
    sizes = "--nodes=4 --requeue --ntasks-per-node=8 --cpus-per-task=4 --exclusive --gpus-per-node=8"
    assert sbatch(jobs(planned)["comm"]) == f"-t 60 --mem-per-cpu 4000 {sizes}"


@pytest.mark.parametrize("job", SERIES)
def test_a_series_has_the_nodes_of_each_of_its_sizes_for_itself(planned: Clone, job: str) -> None:
    assert sbatch(jobs(planned)[job]) == f"-t 60 --mem-per-cpu 4000 {SERIES[job]}"


def test_a_login_node_of_two_cores_changes_no_line(planned: Clone) -> None:
    here = {name: sbatch(job) for name, job in jobs(planned).items()}
    assert {name: sbatch(job) for name, job in jobs(planned, "taskset", "--cpu-list", "0").items()} == here
    assert len(here) == len(SIZES) + len(SERIES) + 1


def test_a_site_may_ask_for_gpus_in_another_way(planned: Clone) -> None:
    profile = planned.folder / "profiles" / "slurm" / "profile.yaml"
    before = profile.read_text()
    profile.write_text(before.replace("    # slurm_extra: ", "    slurm_extra: "))
    try:
        line = sbatch(jobs(planned)["gpu-8"])
    finally:
        profile.write_text(before)
    assert line.endswith("--cpus-per-task=10 --signal=USR1@300 --gpus-per-node=a100:8 --exclusive")
