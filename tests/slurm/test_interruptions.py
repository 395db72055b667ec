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
from support.clone import Clone, wait_until
from support.cluster import Cluster
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


def processes_on(cluster: Cluster, node: str, *words: str) -> list[int]:
    """The processes of a node's namespace whose command line has all these words; all of the machine's on loopback."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_text().split("\0")
            environ = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        if all(any(word in part for part in line) for word in words) and f"SLURMD_NODENAME={node}" in environ:
            found.append(int(folder.name))
    return found


def signal_to_the_processes(cluster: Cluster, job: str) -> None:
    tell("scancel", "--signal=USR1", job)


def requeue_by_hand(cluster: Cluster, job: str) -> None:
    tell("scontrol", "requeue", job)


def kill_a_rank(cluster: Cluster, job: str) -> None:
    rank = [
        process
        for process in processes_on(cluster, nodes_of(job)[1], "fourminutes", "train")
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


#: What happens, and to which run.
DISTURBANCES: list[tuple[Disturb, str]] = [
    (signal_to_the_processes, "short"),
    (requeue_by_hand, "short"),
    (kill_a_rank, "short"),
    (preempt, "short"),
    (kill_the_second_nodes_slurmd, "long"),
    (kill_the_first_nodes_slurmd, "long"),
]


@pytest.mark.parametrize(("disturb", "run"), DISTURBANCES, ids=[disturb.__name__ for disturb, _ in DISTURBANCES])
def test_a_disturbed_run_ends_with_the_undisturbed_weights(
    disturb: Disturb, run: str, idle_cluster: Cluster, prepared: Clone, undisturbed: Records, tmp_path: Path
) -> None:
    clone = copied(prepared, tmp_path)
    with (tmp_path / "said").open("w") as said:
        working = subprocess.Popen(train(run), cwd=clone.folder, env=clone.environ(), stdout=said, stderr=said)
        wait_until(working, lambda: step_of(clone, run) >= 6)
        job = job_of(clone, run)
        disturb(idle_cluster, job)
        status = working.wait(400)
    text = (tmp_path / "said").read_text()
    assert status == 0, text[-3000:] + logs(clone)
    record = record_of(clone, run)
    assert record["parameter_checksum"] == undisturbed[run]["parameter_checksum"]
    # Once, and by Slurm alone: Snakemake submits no second time.
    assert len(re.findall("has been submitted with SLURM jobid", text)) == 1
    first, second = record["sessions"]
    assert (first["job"], second["job"]) == (job, f"{job}+1")
    assert first["ended"] in ("interrupted", "running")
    assert second["from_step"] == first["to_step"] >= 6
    assert second["ended"] == "finished"
    assert not list(clone.folder.glob("work/steps/*.lease.json"))


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
    assert {session["why"] for session in interrupted} == {"SIGUSR1"}
    assert last["ended"] == "finished"
