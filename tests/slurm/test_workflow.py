"""The demo from its archives to its report on four nodes, by the one command that a user types."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from slurm.conftest import copied
from support.clone import Clone
from support.cluster import Cluster

#: The demo's two runs with several processes, as they are placed here.
PLACED = {"resnet50-lars-256": 2, "alexnet-lars-256": 4}


@pytest.fixture(scope="module")
def finished(cluster: Cluster, site_clone: Callable[[str], Clone]) -> Clone:
    """A clone in which `snakemake --profile slurm` has come to its end."""
    clone = site_clone("workflow")
    place(clone, processes_per_node=1)
    done = clone.run("snakemake", "--profile", "slurm")
    assert done.returncode == 0, done.stderr[-5000:]
    return clone


def place(clone: Clone, **fields: int) -> None:
    """Give each of the two runs its number of processes, and other fields to both; a series has a process a node."""
    plan = clone.folder / "config" / "plans" / "demo.yaml"
    text = plan.read_text()
    for run, processes in PLACED.items():
        before, _, after = text.partition(f"  {run}:\n")
        own = "".join(f"    {key}: {value}\n" for key, value in {"processes": processes, **fields}.items())
        text = before + f"  {run}:\n" + after.replace("    processes: 2\n", own, 1)
    sizes = "    world_sizes: [1, 2]\n"
    assert text.count(sizes) == 1
    plan.write_text(text.replace(sizes, f"{sizes}    processes_per_node: 1\n"))


def record_of(clone: Clone, run: str) -> dict[str, Any]:
    return json.loads((clone.folder / f"results/demo/runs/{run}.json").read_text())  # type: ignore[no-any-return]


def test_records_name_every_processs_node(cluster: Cluster, finished: Clone) -> None:
    hosts = {run: record_of(finished, run)["placement"]["hosts"] for run in PLACED}
    assert {run: len(set(names)) for run, names in hosts.items()} == (
        PLACED if cluster.hosts else dict.fromkeys(PLACED, 1)
    )
    if cluster.hosts:
        assert hosts["alexnet-lars-256"] == list(cluster.nodes)


def test_one_process_is_a_job_too(finished: Clone) -> None:
    record = record_of(finished, "resnet50-sgd-32")
    assert record["sessions"][0]["job"].isdecimal()
    assert record["placement"]["launcher"] == "alone"


def test_a_series_is_timed_on_as_many_nodes_as_it_asks_for(cluster: Cluster, finished: Clone) -> None:
    for processes, launcher in ((1, "alone"), (2, "slurm")):
        path = finished.folder / f"results/demo/scaling/alexnet-weak-{processes}.json"
        record = json.loads(path.read_text())
        assert len(record["repeats"]) >= 7
        assert record["placement"]["launcher"] == launcher
        if cluster.hosts:
            assert len(set(record["placement"]["hosts"])) == processes


def test_the_report_is_there_and_nothing_is_left_to_do(finished: Clone) -> None:
    assert (finished.folder / "results/demo/report.html").stat().st_size > 0
    again = finished.run("snakemake", "--profile", "slurm")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize("run", PLACED)
def test_epochs_are_those_of_as_many_processes_on_one_machine_bit_for_bit(
    finished: Clone, run: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = copied(finished, tmp_path_factory.mktemp("here"))
    there = record_of(here, run)
    assert there["settings"]["reduce"]["algorithm"] == "ring"
    line = (
        f"fourminutes launch --processes {PLACED[run]} -- fourminutes train --plan config/plans/demo.yaml --run {run}"
    )
    done = here.run(*line.split())
    assert done.returncode == 0, done.stderr
    again = record_of(here, run)
    assert again["placement"]["hosts"] != there["placement"]["hosts"]
    for key in ("train_loss", "val_loss", "top1_percent", "top5_percent"):
        assert [epoch[key] for epoch in again["epochs"]] == [epoch[key] for epoch in there["epochs"]]
    assert again["parameter_checksum"] == there["parameter_checksum"]
