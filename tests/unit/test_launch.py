"""One resolver of rank, sizes and meeting point: torchrun, srun, a batch script's body, or nothing."""

import subprocess
import sys

import pytest

from fourminutes.comm.group import process_group
from fourminutes.comm.launch import ALONE, Launch, expand_hostlist, resolve_launch
from fourminutes.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}

# What a batch script finds in its environment when the job asked for five tasks on three nodes.
SBATCH = {
    "SLURM_JOB_ID": "41237",
    "SLURM_JOBID": "41237",
    "SLURM_JOB_NODELIST": "gpu[02-04]",
    "SLURM_NODELIST": "gpu[02-04]",
    "SLURM_NTASKS": "5",
    "SLURM_NPROCS": "5",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}

# What the fourth of the tasks that its srun started finds.
SRUN = SBATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[02-04]",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_torchrun() -> None:
    assert resolve_launch(TORCHRUN) == Launch("torchrun", 5, 8, 1, 4, "env://", another_host="node-a")


def test_srun_task() -> None:
    launch = resolve_launch(SRUN)
    assert launch == Launch("slurm", 3, 5, 1, 2, "tcp://gpu02:16237", another_host="gpu02")
    assert not launch.is_first
    assert not launch.is_one_host


def test_the_first_node_reaches_out_to_another_than_itself() -> None:
    first = SRUN | {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert resolve_launch(first).another_host == "gpu03"


def test_torchruns_first_node_is_told_of_no_other() -> None:
    assert resolve_launch(TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}).another_host is None


def test_last_node_holds_the_remainder() -> None:
    launch = resolve_launch(SRUN | {"SLURM_NODEID": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"})
    assert (launch.rank, launch.local_rank, launch.local_world_size) == (4, 0, 1)


def test_body_of_a_batch_script_is_alone() -> None:
    assert resolve_launch(SBATCH) == ALONE


def test_step_of_one_task_inside_a_larger_job_is_alone() -> None:
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "gpu02"}
    assert resolve_launch(SRUN | one | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == ALONE


def test_empty_environment_is_alone() -> None:
    assert resolve_launch({}) == ALONE


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert resolve_launch(SRUN | TORCHRUN).launcher == "torchrun"


def test_step_on_one_node_meets_on_the_loopback() -> None:
    launch = resolve_launch(
        SRUN
        | {"SLURM_STEP_NODELIST": "gpu03", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4"}
        | {"SLURM_NODEID": "0"}
    )
    assert launch.init_method == "tcp://127.0.0.1:16237"
    assert launch.is_one_host


def test_steps_of_one_job_meet_at_different_ports() -> None:
    meetings = {resolve_launch(SRUN | {"SLURM_STEP_ID": str(step)}).init_method for step in range(20)}
    assert len(meetings) == 20


@pytest.mark.parametrize("job_id", ["1", "9999", "10000", "67043327"])
def test_port_is_neither_privileged_nor_ephemeral(job_id: str) -> None:
    port = int(str(resolve_launch(SRUN | {"SLURM_JOB_ID": job_id}).init_method).rsplit(":", 1)[1])
    assert 15_000 <= port < 25_000


def test_given_meeting_point_is_kept_under_slurm() -> None:
    given = SRUN | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "23456"}
    assert resolve_launch(given).init_method == "tcp://10.0.0.7:23456"


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        (TORCHRUN | {"RANK": "8"}, "RANK"),
        (TORCHRUN | {"RANK": "first"}, "RANK"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_RANK"),
        ({key: TORCHRUN[key] for key in TORCHRUN if key != "LOCAL_WORLD_SIZE"}, "LOCAL_WORLD_SIZE"),
        ({key: TORCHRUN[key] for key in TORCHRUN if key != "MASTER_PORT"}, "MASTER_PORT"),
        (SRUN | {"SLURM_PROCID": "5"}, "SLURM_PROCID"),
        (SRUN | {"SLURM_LOCALID": "2"}, "SLURM_LOCALID"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "6"}, "SLURM_STEP_TASKS_PER_NODE"),
        (SRUN | {"SLURM_NODEID": "3"}, "SLURM_STEP_TASKS_PER_NODE"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE"),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[02-04"}, "SLURM_STEP_NODELIST"),
        ({key: SRUN[key] for key in SRUN if key != "SLURM_NODEID"}, "SLURM_NODEID"),
    ],
)
def test_contradiction_is_one_line_that_names_the_variable(environ: dict[str, str], name: str) -> None:
    with pytest.raises(UserError) as refusal:
        resolve_launch(environ)
    assert str(refusal.value).startswith(f"{name}: ")
    assert "; start" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("hostlist", "hosts"),
    [
        ("login", ["login"]),
        ("n[1-4,7]", ["n1", "n2", "n3", "n4", "n7"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("n[2,1],head-1.cluster,c[001-002]x", ["n2", "n1", "head-1.cluster", "c001x", "c002x"]),
        ("rack[1-2]n[09-10]", ["rack1n09", "rack1n10", "rack2n09", "rack2n10"]),
    ],
)
def test_hostlist_expands_in_order(hostlist: str, hosts: list[str]) -> None:
    assert expand_hostlist(hostlist) == hosts


@pytest.mark.parametrize("hostlist", ["", "n[1-", "n]1[", "n[a-b]", "n[1-2-3]", "a,,b", "a b", "n[]"])
def test_what_is_no_hostlist_is_refused(hostlist: str) -> None:
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST"):
        expand_hostlist(hostlist)


def test_process_group_of_one_is_none() -> None:
    from torch import distributed

    with process_group(ALONE):
        assert not distributed.is_initialized()


def test_resolver_and_fits_and_predictions_need_no_torch() -> None:
    program = (
        "import sys; import fourminutes.comm.launch as l, fourminutes.comm.fit, fourminutes.scale; "
        "l.resolve_launch({}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
