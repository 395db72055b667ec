"""Starting the processes of a job: on this machine one by one, on a Slurm job's nodes by srun."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from fourminutes.comm.local import run_here, run_step
from fourminutes.errors import UserError


def start_command(
    command: Sequence[str], *, processes: int, per_node: int, threads: int, environ: Mapping[str, str] = os.environ
) -> list[str] | None:
    """The command line that starts `command` as `processes` processes, `per_node` on each node.

    One process is the command itself. Several are a step of the Slurm job that this runs in, if it runs in one; every
    size is given, since a job that Snakemake submitted has no sizes of its own to inherit. Elsewhere they run on this
    machine, which needs no command of its own: None.

    Args:
        command: what each process runs.
        processes: in all, one a device.
        per_node: processes on each node.
        threads: CPU cores of each process.
        environ: tells whether this is a Slurm job (``SLURM_JOB_ID``).

    Raises:
        UserError: several nodes are asked for outside of a Slurm job.
    """
    if processes == 1:
        return list(command)
    nodes = processes // per_node
    if "SLURM_JOB_ID" in environ:
        return [
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={processes}",
            f"--ntasks-per-node={per_node}",
            f"--cpus-per-task={threads}",
            "--cpu-bind=none",
            "--kill-on-bad-exit=1",
            *command,
        ]
    if nodes > 1:
        raise UserError(
            f"{processes} processes, {per_node} a node: need {nodes} nodes, and this is no Slurm job; "
            "use `snakemake --profile slurm`, or set processes_per_node: null to run all of them here"
        )
    return None


def start(command: Sequence[str], *, processes: int, per_node: int, threads: int) -> NoReturn:
    """Run `command` as so many processes, and exit with its status; see `start_command` and `comm.local`.

    Raises:
        UserError: several nodes are asked for outside of a Slurm job, or there is no such command.
    """
    line = start_command(command, processes=processes, per_node=per_node, threads=threads)
    environ = {"OMP_NUM_THREADS": str(threads)} | os.environ
    try:
        if line is None:
            sys.exit(run_here(command, processes, environ))
        if processes > 1:
            sys.exit(run_step(line, processes, environ))
        os.execvpe(line[0], line, environ)
    except FileNotFoundError as error:
        name = line[0] if line else command[0]
        raise UserError(f"{name}: no such command; is the environment that has it active?") from error
