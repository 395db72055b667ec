"""The Slurm job that this process is part of: what Slurm says of it, and putting it back into the queue."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

# What squeue prints of a job, one after the other; none of it holds a blank.
_COLUMNS = "State:32,RestartCnt:32,SubmitTime:32"
_ANSWERS_WITHIN_S = 60.0
# States in which the processes of a job are there, or may be.
_LIVING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})


class NoAnswer(Exception):
    """Slurm's commands are not here, or its controller doesn't answer; says which."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job.

    Attributes:
        state: in Slurm's words, such as ``RUNNING``.
        restarts: how often it was put back into the queue.
        submitted: when it came into the queue, last; local time without a zone, as Slurm has it.
    """

    state: str
    restarts: int
    submitted: datetime

    @property
    def is_living(self) -> bool:
        """Whether its processes are there, or may be."""
        return self.state in _LIVING


def own_job(environ: Mapping[str, str] = os.environ) -> str | None:
    """The id of the job that this process is part of, of an array's task as ``7_3``; None outside of one."""
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")


def is_in_step(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of an `srun` step, which has the step's cores, and not the batch script."""
    return "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ


def look_up(job: str) -> JobState | None:
    """What Slurm says of a job; None where it knows of none such (any more).

    Raises:
        NoAnswer: Slurm cannot be asked.
    """
    done = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={_COLUMNS}"])
    if done.returncode:
        if "invalid job id" in done.stderr.lower():
            return None
        raise NoAnswer(f"squeue: {done.stderr.strip() or done.returncode}")
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    if not rows:
        return None
    state, restarts, submitted = rows[0]
    return JobState(state, int(restarts), datetime.fromisoformat(submitted))


def requeue(job: str, restarts: int) -> str | None:
    """Put the job back into the queue, from which it starts again under the same id; returns why not, if so.

    Slurm ends the job's processes then, this one too. Nothing is done where Slurm has done it already, as after a
    node's failure: the job that is running by now is another start of it, or stands in the queue.

    Args:
        job: its id.
        restarts: how often it had been put back when this process started.
    """
    try:
        now = look_up(job)
        if now is None or now.restarts != restarts or now.state != "RUNNING":
            return f"Slurm has it as {now.state.lower() if now else 'ended'}"
        done = _ask(["scontrol", "requeue", job])
    except NoAnswer as error:
        return str(error)
    return done.stderr.strip() or f"scontrol ended with {done.returncode}" if done.returncode else None


def cancel_if_pending(job: str) -> bool:
    """Cancel a job that stands in the queue, and no other; returns whether there was such a one.

    Raises:
        NoAnswer: Slurm cannot be asked.
    """
    now = look_up(job)
    if now is None or now.state != "PENDING":
        return False
    return _ask(["scancel", "--state=PENDING", job]).returncode == 0


def _ask(line: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which(line[0]) is None:
        raise NoAnswer(f"{line[0]}: no such command here")
    try:
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=_ANSWERS_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{line[0]}: no answer ({error})") from error
