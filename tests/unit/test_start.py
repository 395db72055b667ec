"""Starting a job's processes: the command lines, and several of them on this machine."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fourminutes.comm.launch import resolve_launch
from fourminutes.comm.local import run_here
from fourminutes.comm.start import start_command
from fourminutes.errors import UserError

COMMAND = ["fourminutes", "train", "--plan", "p.yaml", "--run", "a"]
LAUNCH = [Path(sys.executable).with_name("fourminutes"), "launch", "--processes", "2", "--"]


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCH, *command], check=False, capture_output=True, text=True, timeout=60)


def test_one_process_is_the_command_itself():
    assert start_command(COMMAND, processes=1, per_node=1, threads=4, environ={}) == COMMAND


def test_one_process_of_a_slurm_job_is_a_step_too_which_signals_reach_alone():
    line = start_command(COMMAND, processes=1, per_node=1, threads=4, environ={"SLURM_JOB_ID": "7"})
    assert line is not None
    assert line[:4] == ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]


def test_one_process_within_a_step_is_the_command_itself_since_the_step_has_the_cores():
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    assert start_command(COMMAND, processes=1, per_node=1, threads=4, environ=step) == COMMAND


def test_several_here_need_no_other_command():
    assert start_command(COMMAND, processes=2, per_node=2, threads=1, environ={}) is None


def test_in_a_slurm_job_every_size_is_given_to_srun():
    line = start_command(COMMAND, processes=32, per_node=8, threads=12, environ={"SLURM_JOB_ID": "7"})
    sizes = ["--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=12"]
    assert line == ["srun", *sizes, "--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=30", *COMMAND]


def test_several_nodes_outside_of_slurm_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="need 4 nodes, and this is no Slurm job; use `snakemake --profile slurm`"):
        start_command(COMMAND, processes=32, per_node=8, threads=1, environ={})


@pytest.mark.parametrize("status", [0, 2, 75])
def test_the_commands_status_comes_out_and_nothing_else(status):
    done = launched("sh", "-c", f"exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_command_that_is_none_is_one_line():
    done = launched("no-such-command")
    assert done.returncode == 2
    assert done.stderr.startswith("fourminutes: no-such-command: no such command;")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_process(number):
    """Each waits for the signal, and says on stdout that it is ready, then that it has come."""
    program = (
        "import signal, sys; "
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}]); "
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); "
        f"signal.sigwait([{number:d}]); sys.stdout.write('came\\n'); sys.stdout.flush(); sys.exit(75)"
    )
    with subprocess.Popen([*LAUNCH, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        launcher.send_signal(number)
        assert launcher.stdout.read() == "came\n" * 2
        assert launcher.wait(60) == 75


def test_where_one_fails_the_others_are_ended_even_those_that_ignore_sigterm():
    program = "trap '' TERM; test $RANK = 1 && exit 3; exec tail -f /dev/null"
    assert run_here(["sh", "-c", program], 3, os.environ, grace_s=0.1).status == 3


def test_a_process_that_a_signal_ended_counts_as_128_and_its_number():
    assert run_here(["sh", "-c", "kill -KILL $$"], 1, os.environ).status == 128 + signal.SIGKILL


def test_children_from_before_are_nobodys():
    """As of a shell that started something in the background, and then became the launcher."""
    shell = f"true & true & exec {LAUNCH[0]} launch --processes 2 -- sh -c 'sleep 0.2; exit 75'"
    assert subprocess.run(["sh", "-c", shell], check=False, timeout=60).returncode == 75


def test_every_process_finds_its_place(tmp_path):
    assert run_here(["sh", "-c", f"env > {tmp_path}/$RANK"], 3, os.environ).status == 0
    environs = [
        dict(line.split("=", 1) for line in (tmp_path / str(rank)).read_text().splitlines() if "=" in line)
        for rank in range(3)
    ]
    places = [resolve_launch(environ) for environ in environs]
    assert [(place.rank, place.local_rank, place.world_size, place.local_world_size) for place in places] == [
        (0, 0, 3, 3),
        (1, 1, 3, 3),
        (2, 2, 3, 3),
    ]
    assert len({(environ["MASTER_ADDR"], environ["MASTER_PORT"]) for environ in environs}) == 1


# --- under watch ----------------------------------------------------------------------------------------------------

# Rank 1 is killed while rank 0 waits for it.
UNDER_WATCH = """
import os, signal
from fourminutes.comm.launch import resolve_launch
from fourminutes.comm.watched import watched
with watched(timeout_s=60, again="start again"):
    os.kill(os.getpid(), signal.SIGKILL) if resolve_launch().rank == 1 else signal.pause()
"""
# Starts two tasks on one node, and knows nothing of its options.
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_TASKS_PER_NODE=2 SLURM_NODEID=0 SLURM_JOB_NODELIST=n1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@"
wait $first
"""


def test_who_was_lost_is_said_once_and_nobody_waits_for_it():
    done = launched(sys.executable, "-c", UNDER_WATCH)
    assert done.returncode == 1
    lost = f"fourminutes: rank 1 on {platform.node()} was lost (ended by SIGKILL) in the start; start again\n"
    assert done.stderr == lost


def test_a_slurm_step_is_watched_from_where_it_is_started(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = [*LAUNCH, sys.executable, "-c", UNDER_WATCH]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 1
    lost = f"fourminutes: rank 1 on {platform.node()} was lost (its line is broken) in the start; start again\n"
    assert lost in done.stderr
    assert done.stderr.count("fourminutes:") == 1


def test_a_process_that_is_stopped_is_ended_too():
    """It is named after it gave no sign of life for that long, and SIGTERM is nothing to it."""
    program = UNDER_WATCH.replace("timeout_s=60", "timeout_s=1").replace("SIGKILL", "SIGSTOP")
    done = launched(sys.executable, "-c", program)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"fourminutes: rank 1 on .* was lost \(no sign of life for \d s\) in the start; start again", line
    )
