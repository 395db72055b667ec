"""Starting the processes of a job: on this machine one by one, on a Slurm job's nodes by srun; and starting again."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from fourminutes.comm.launch import LISTENING_PORTS
from fourminutes.comm.lease import LEASE, Held, held
from fourminutes.comm.local import Outcome, free_port, run_here, run_step
from fourminutes.comm.slurm import JobState, NoAnswer, is_in_step, look_up, own_job, requeue
from fourminutes.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError

ASKED = "FOURMINUTES_ASKED"
"""The environment variable that says since when a run is asked for, in UTC: a record written since then answers it."""

# After one process ended, srun ends the others: those that want to save with it are long done.
_WAIT_FOR_OTHERS_S = 30
# A process lost once is bad luck; as many in a row are a machine or a program at fault.
MOST_LOSSES = 3
_ENDED_WITHIN_S = 60.0


def start_command(
    command: Sequence[str], *, processes: int, per_node: int, threads: int, environ: Mapping[str, str] = os.environ
) -> list[str] | None:
    """The command line that starts `command` as `processes` processes, `per_node` on each node.

    In a Slurm job they are a step of it, one process too, so that Slurm's signals reach it alone; every size is given,
    since a job that Snakemake submitted has no sizes of its own to inherit. Elsewhere one process is the command
    itself, and several run on this machine, which needs no command of its own: None.

    Args:
        command: what each process runs.
        processes: in all, one a device.
        per_node: processes on each node.
        threads: CPU cores of each process.
        environ: tells whether this is a Slurm job (``SLURM_JOB_ID``), and its batch script.

    Raises:
        UserError: several nodes are asked for outside of a Slurm job.
    """
    nodes = processes // per_node
    if own_job(environ) and (processes > 1 or not is_in_step(environ)):
        return [
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={processes}",
            f"--ntasks-per-node={per_node}",
            f"--cpus-per-task={threads}",
            "--cpu-bind=none",
            # Not at once on the first bad exit: whoever ends first after a checkpoint would have the others killed.
            "--kill-on-bad-exit=0",
            f"--wait={_WAIT_FOR_OTHERS_S}",
            *command,
        ]
    if processes == 1:
        return list(command)
    if nodes > 1:
        raise UserError(
            f"{processes} processes, {per_node} a node: need {nodes} nodes, and this is no Slurm job; "
            "use `snakemake --profile slurm`, or set processes_per_node: null to run all of them here"
        )
    return None


def start(
    command: Sequence[str], *, processes: int, per_node: int, threads: int, lease: Path | None = None
) -> NoReturn:
    """Run `command` as so many processes, and exit with its status; see `start_command` and `comm.local`.

    With a `lease`, one start at a time: another one that lives is waited for. And in a Slurm job a start that SIGUSR1
    interrupted (as before a time limit, by ``--signal``), or that lost a process, puts the job back into the queue. One
    that was itself told to stop otherwise doesn't: who told it knows what comes next.

    Raises:
        UserError: several nodes are asked for outside of a Slurm job, or there is no such command.
    """
    line = start_command(command, processes=processes, per_node=per_node, threads=threads)
    job = own_job()
    state = _state_of(job)
    environ = {"OMP_NUM_THREADS": str(threads), ASKED: _asked(state)} | os.environ
    if job is not None and processes > 1:
        number = int("".join(re.findall("[0-9]", job)) or 0)
        environ = {"MASTER_PORT": str(free_port(LISTENING_PORTS[number % len(LISTENING_PORTS)]))} | environ
    if lease is None:
        sys.exit(_run(line, command, processes, environ).status)
    with held(lease, waits=True) as own:
        outcome = _run(line, command, processes, environ | {LEASE: own.start})
        if outcome.status not in (0, EXIT_BAD_INPUT, EXIT_INTERRUPTED):
            own.fail()
        if job is not None and not is_in_step() and not outcome.was_told:
            _go_on(job, state or _state_of(job), outcome, own)
    sys.exit(outcome.status)


def _run(line: Sequence[str] | None, command: Sequence[str], processes: int, environ: Mapping[str, str]) -> Outcome:
    try:
        if line is None:
            return run_here(command, processes, environ)
        return run_step(line, processes, environ, is_srun=line[0] == "srun")
    except FileNotFoundError as error:
        name = line[0] if line else command[0]
        raise UserError(f"{name}: no such command; is the environment that has it active?") from error


def _go_on(job: str, state: JobState | None, outcome: Outcome, own: Held) -> None:
    """Put the job back into the queue where another start is worth it; Slurm then ends this process."""
    losses = own.began.losses + 1 if outcome.is_lost else 0
    if losses >= MOST_LOSSES:
        _say(f"a process was lost in {losses} starts in a row; job {job} does not go back into the queue")
    elif outcome.is_lost or outcome.status == EXIT_INTERRUPTED:
        own.leave(losses=losses)
        why_not = requeue(job, state.restarts) if state is not None else "Slurm does not answer"
        if why_not is None:
            _say(f"job {job} goes back into the queue, to go on from its last checkpoint")
            time.sleep(_ENDED_WITHIN_S)
        else:
            own.stays = outcome.is_lost
            _say(f"job {job} does not go back into the queue: {why_not}")


def _say(line: str) -> None:
    print(f"fourminutes: {line}", file=sys.stderr, flush=True)


def _state_of(job: str | None) -> JobState | None:
    """What Slurm says of the job that this is part of; None outside of one, or where Slurm cannot be asked."""
    try:
        return look_up(job) if job is not None else None
    except NoAnswer:
        return None


def _asked(state: JobState | None) -> str:
    """Since when this is asked for: in a Slurm job since it came into the queue."""
    since = state.submitted.astimezone(UTC) if state is not None else datetime.now(UTC)
    return since.isoformat(timespec="seconds")
