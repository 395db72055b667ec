"""A training on Slurm that is disturbed in every way that Slurm knows, and ends as if nothing had been."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slurm.conftest import copied
from support.clone import Clone, wait_until, working
from support.cluster import Cluster, processes_of
from support.steps import job_of, logs, record_of, step_of, train

Disturb = Callable[[Cluster, str], None]
Records = dict[str, dict[str, Any]]


def nodes_of(job: str) -> list[str]:
    """The nodes of a job, the first of which has its batch script."""
    names = subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%N"], check=True, capture_output=True, text=True
    ).stdout.strip()
    listed = subprocess.run(["scontrol", "show", "hostnames", names], check=True, capture_output=True, text=True)
    return listed.stdout.split()


def tell(*line: str) -> None:
    subprocess.run(line, check=True)


def signal_to_the_processes(cluster: Cluster, job: str) -> None:
    tell("scancel", "--signal=USR1", job)


def requeue_by_hand(cluster: Cluster, job: str) -> None:
    tell("scontrol", "requeue", job)


def kill_a_rank(cluster: Cluster, job: str) -> None:
    rank = [
        process
        for process in processes_of(nodes_of(job)[1])
        if "SLURM_PROCID=1" in Path(f"/proc/{process}/environ").read_text().split("\0")
    ]
    assert rank
    for process in rank:
        os.kill(process, signal.SIGKILL)


def kill_the_second_nodes_slurmd(cluster: Cluster, job: str) -> None:
    node = nodes_of(job)[1]
    cluster.down(node)
    cluster.up(node)


def kill_the_first_nodes_slurmd(cluster: Cluster, job: str) -> None:
    node = nodes_of(job)[0]
    cluster.down(node)
    cluster.up(node)


def preempt(cluster: Cluster, job: str) -> None:
    tell("srun", "--partition=urgent", "--nodes=4", "--ntasks=4", "--exclusive", "--time=1", "true")


#: Slurm sends SIGTERM; the launcher passes it on to srun as SIGUSR1, which may be the first to come.
TOLD = {"SIGTERM", "SIGUSR1"}
#: What happens, to which run, and what that may say it was told to end by: of a kill, nothing.
DISTURBANCES: list[tuple[Disturb, str, set[str]]] = [
    (signal_to_the_processes, "short", {"SIGUSR1"}),
    (requeue_by_hand, "short", TOLD),
    (preempt, "short", TOLD),
    (kill_a_rank, "short", {""}),
    (kill_the_second_nodes_slurmd, "long", TOLD | {""}),
    (kill_the_first_nodes_slurmd, "long", TOLD | {""}),
]


@pytest.mark.parametrize(("disturb", "run", "why"), DISTURBANCES, ids=[each[0].__name__ for each in DISTURBANCES])
def test_a_disturbed_run_ends_with_the_undisturbed_weights(
    disturb: Disturb,
    run: str,
    why: set[str],
    idle_cluster: Cluster,
    prepared: Clone,
    undisturbed: Records,
    tmp_path: Path,
) -> None:
    clone = copied(prepared, tmp_path)
    with working(clone, train(run), tmp_path / "said") as snakemake:
        wait_until(snakemake, lambda: step_of(clone, run) >= 6)
        job = job_of(clone, run)
        disturb(idle_cluster, job)
        status = snakemake.wait(400)
    text = (tmp_path / "said").read_text()
    assert status == 0, text[-3000:] + logs(clone)
    record = record_of(clone, run)
    assert record["parameter_checksum"] == undisturbed[run]["parameter_checksum"]
    # Once, and by Slurm alone: Snakemake submits no second time.
    assert len(re.findall("has been submitted with SLURM jobid", text)) == 1
    first, second = record["sessions"]
    assert (first["job"], second["job"]) == (job, f"{job}+1")
    assert first["why"] in why
    assert first["ended"] == ("interrupted" if first["why"] else "running")
    assert second["from_step"] == first["to_step"] >= 6
    assert second["ended"] == "finished"
    assert not list(clone.folder.glob("work/steps/*.lease.json*"))


def test_a_job_that_reaches_its_time_limit_goes_on_in_the_queue(
    idle_cluster: Cluster, prepared: Clone, undisturbed: Records, tmp_path: Path
) -> None:
    clone = copied(prepared, tmp_path)
    profile = clone.folder / "profiles" / "slurm" / "profile.yaml"
    minute = "    runtime: 1\n    slurm_extra: \"'--signal=USR1@45'\"\n"
    profile.write_text(profile.read_text().replace("    runtime: 720\n", minute, 1))
    done = clone.run(*train("long"))
    assert done.returncode == 0, done.stderr[-3000:] + logs(clone)
    record = record_of(clone, "long")
    assert record["parameter_checksum"] == undisturbed["long"]["parameter_checksum"]
    *interrupted, last = record["sessions"]
    assert interrupted, "the run was over before its time limit"
    assert {session["why"] for session in interrupted} == {"SIGUSR1"}
    assert last["ended"] == "finished"
