"""Snakemake is killed while its job trains, and asked again: the work is done once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from slurm.conftest import copied
from support.clone import Clone, wait_until, working
from support.cluster import Cluster
from support.cluster import wait_until as wait_until_slurm
from support.steps import job_of, log_of, logs, record_of, step_of, train


def state_of(job: str) -> str:
    """What Slurm says of a job."""
    line = ["squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T"]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def killed_in_mid_run(clone: Clone, run: str) -> str:
    """Start Snakemake, kill it as soon as its job has a checkpoint, and unlock; returns the job, which is suspended."""
    with working(clone, train(run), clone.folder / "first") as snakemake:
        wait_until(snakemake, lambda: step_of(clone, run) >= 6)
    job = job_of(clone, run)
    subprocess.run(["scontrol", "suspend", job], check=True)
    unlocked = clone.run("snakemake", "--unlock", "--config", "plan=steps")
    assert unlocked.returncode == 0, unlocked.stderr
    return job


def test_a_second_submission_waits_for_the_first_and_takes_its_record(
    idle_cluster: Cluster, prepared: Clone, tmp_path: Path
) -> None:
    clone = copied(prepared, tmp_path)
    job = killed_in_mid_run(clone, "short")
    with working(clone, train("short"), tmp_path / "second") as second:
        wait_until(second, lambda: "is at this run; waiting for it" in log_of(clone, "short"))
        subprocess.run(["scontrol", "resume", job], check=True)
        assert second.wait(400) == 0, (tmp_path / "second").read_text()[-3000:] + logs(clone)
    log = log_of(clone, "short")
    assert f"fourminutes: job {job} on " in log
    assert f"run short: job {job} has finished it meanwhile; nothing is left to do" in log
    (session,) = record_of(clone, "short")["sessions"]
    assert (session["job"], session["from_step"], session["ended"]) == (job, 0, "finished")
    again = clone.run(*train("short"))
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_second_submission_goes_on_where_the_first_is_interrupted_with_the_same_thresholds(
    idle_cluster: Cluster, prepared: Clone, tmp_path: Path
) -> None:
    clone = copied(prepared, tmp_path)
    job = killed_in_mid_run(clone, "tuned")
    (tuning,) = clone.folder.glob("work/steps/tuned-*/tuning.json")
    frozen = tuning.read_text()
    with working(clone, train("tuned"), tmp_path / "second") as second:
        wait_until(second, lambda: "is at this run; waiting for it" in log_of(clone, "tuned"))
        subprocess.run(["scontrol", "resume", job], check=True)
        subprocess.run(["scancel", "--signal=USR1", job], check=True)
        assert second.wait(400) == 0, (tmp_path / "second").read_text()[-3000:] + logs(clone)
    record = record_of(clone, "tuned")
    first, last = record["sessions"]
    assert (first["job"], first["ended"], first["why"]) == (job, "interrupted", "SIGUSR1")
    assert last["job"] not in (None, job)
    assert last["from_step"] == first["to_step"]
    assert last["note"] == "", "sums are arranged in another way than before"
    assert tuning.read_text() == frozen
    used, chosen = record["reduction"]["settings"], json.loads(frozen)
    assert used["choices"] == chosen["choices"]
    assert used["bucket_mib"] == chosen["bucket_mib"]
    # The first one's job, back in the queue, has nothing left to do, and is taken out of it.
    wait_until_slurm("the first job is cancelled", lambda: state_of(job) == "CANCELLED")
