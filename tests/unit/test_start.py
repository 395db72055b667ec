"""The command lines that start a job's processes."""

from __future__ import annotations

import pytest

from fourminutes.comm.start import start_command
from fourminutes.errors import UserError

COMMAND = ["fourminutes", "train", "--plan", "p.yaml", "--run", "a"]


def test_one_process_is_the_command_itself_even_in_a_slurm_job():
    line = start_command(COMMAND, processes=1, per_node=1, threads=4, environ={"SLURM_JOB_ID": "7"})
    assert line == COMMAND


def test_several_here_are_torchruns_and_the_commands_options_stay_its_own():
    line = start_command(COMMAND, processes=2, per_node=2, threads=1, environ={})
    assert line[0].endswith("torchrun")
    assert line[1:] == ["--standalone", "--nproc-per-node=2", "--no-python", "--", *COMMAND]


def test_in_a_slurm_job_every_size_is_given_to_srun():
    line = start_command(COMMAND, processes=32, per_node=8, threads=12, environ={"SLURM_JOB_ID": "7"})
    sizes = ["--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=12"]
    assert line == ["srun", *sizes, "--cpu-bind=none", "--kill-on-bad-exit=1", *COMMAND]


def test_several_nodes_outside_of_slurm_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="need 4 nodes, and this is no Slurm job; use `snakemake --profile slurm`"):
        start_command(COMMAND, processes=32, per_node=8, threads=1, environ={})
