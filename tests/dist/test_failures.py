"""When a rank dies, hangs or comes late: the others end, one line names it, and nothing that was safe is lost."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training import Bench, launch, made_bench, record_of, torchrun_variables

from fourminutes.comm.launch import LISTENING_PORTS
from fourminutes.plan import Plan
from fourminutes.train.checkpoint import home_of, load_newest, read_marker
from fourminutes.train.ranks import Ranks

PROCESSES = 4
SAVED = (5, 6)  # steps of the last checkpoints before step 7: that of 6 may still have been under way
HOST = re.escape(platform.node())
AGAIN = r"; start again: the run goes on from its last checkpoint"
STAGE = r"stage (reduce, within|all_reduce, across|broadcast, within)"
CHANGES = {
    "processes": PROCESSES,
    "checkpoint": {"every_steps": 3},
    # One lane, so that it is certain in which bucket a rank is missed.
    "reduce": {"algorithm": "hierarchical", "group_ranks": 2, "bucket_mib": 0.02, "lanes": 1},
}
# Where it has to pass: more than one rank may take longer than another for its imports, or for its first words.
LOST_AFTER_S = {"stop": 10, "hang": 10, "late": 5}
LOST = r"was lost \({how}\)(, last heard of in .*, missed)? in step 7, {where}"
LINES = {
    "kill": LOST.format(how="(ended by SIGKILL|its line is broken)", where=rf"bucket 2 of \d+, {STAGE}"),
    "stop": LOST.format(how=r"no sign of life for \d+ s", where=rf"bucket 1 of \d+, {STAGE}"),
    "hang": rf"was stuck for \d+ s in step 7, its beginning, missed in step 7, bucket 1 of \d+, {STAGE}",
    "fail": r"failed in step 7, its beginning: ZeroDivisionError: as asked for",
    "late": r"did not come within \d+ s of the first of 4",
    "early kill": r"was lost \(ended by SIGKILL\)(, last heard of in .*, missed)? in .*",
}
# Far beyond what any launch here takes: imports, training, lost_after_s and 5 s.
HUNG_AFTER_S = 240


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("failures")) as made:
        yield made


def plan_for(bench: Bench, manner: str) -> Plan:
    """Of one run for all: each failure goes on from where the one before was safe, and comes as far."""
    return bench.plan("lost", **CHANGES, lost_after_s=LOST_AFTER_S.get(manner, 60))


def command(plan: Plan, rank: int, manner: str) -> list[str]:
    """The command line of every rank, of which one is disturbed."""
    script = Path(__file__).with_name("disturbed.py")
    training = ["fourminutes", "train", "--plan", f"{plan.name}.yaml", "--run", "run"]
    return [sys.executable, str(script), str(rank), manner, *training]


def launched(bench: Bench, plan: Plan, rank: int, manner: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "fourminutes", "launch", "--processes", str(PROCESSES), "--"]
    return subprocess.run(
        [*launch, *command(plan, rank, manner)],
        cwd=bench.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=HUNG_AFTER_S,
    )


def assert_named(stderr: str, rank: int, manner: str) -> None:
    """In one line."""
    (line,) = [line for line in stderr.splitlines() if line.startswith("fourminutes:")]
    assert re.fullmatch(f"fourminutes: rank {rank} on {HOST} {LINES[manner]}{AGAIN}", line), line


def assert_nobody_left(bench: Bench, processes: int = PROCESSES) -> None:
    """Neither running, nor stopped, nor a zombie."""
    for rank in range(processes):
        with pytest.raises(ProcessLookupError):
            os.kill(int((bench.folder / f"pid-{rank}").read_text()), 0)


def assert_saved(plan: Plan) -> None:
    """The newest checkpoint is one of those before the loss, whole for every rank."""
    (folder,) = (plan.work / plan.name).glob("run-*")
    saved = load_newest(folder, Ranks(0, PROCESSES, group=None))
    assert saved is not None
    assert saved.step in SAVED
    home = home_of(folder, saved.step)
    marker = read_marker(home)
    assert marker is not None
    for name, sha256 in marker.sha256.items():
        assert hashlib.sha256((home / name).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("manner", ["kill", "stop"])
def test_whichever_rank_is_lost_is_named_and_the_others_end(bench, rank, manner):
    plan = plan_for(bench, manner)
    done = launched(bench, plan, rank, manner)
    assert done.returncode == 1, done.stderr
    assert_named(done.stderr, rank, manner)
    assert "Traceback" not in done.stderr
    assert_nobody_left(bench)
    assert_saved(plan)


def test_a_rank_killed_with_several_buckets_under_way_is_named(bench):
    plan = bench.plan("lanes", **CHANGES | {"reduce": CHANGES["reduce"] | {"lanes": 4}}, lost_after_s=60)
    done = launched(bench, plan, 2, "kill")
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fourminutes:")]
    lost = LOST.format(how="ended by SIGKILL", where=rf"bucket \d+ of \d+, ({STAGE}|stage divide)")
    assert re.fullmatch(f"fourminutes: rank 2 on {HOST} {lost}{AGAIN}", line), line
    assert "Traceback" not in done.stderr
    assert_nobody_left(bench)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_whichever_rank_is_late_is_named_and_the_others_end(bench, rank):
    done = launched(bench, plan_for(bench, "late"), rank, "late")
    assert done.returncode == 1, done.stderr
    assert_named(done.stderr, rank, "late")
    assert "Traceback" not in done.stderr
    assert_nobody_left(bench)


@pytest.mark.parametrize("manner", ["hang", "fail", "early kill"])
def test_a_rank_that_hangs_or_fails_or_never_came_is_named(bench, manner):
    done = launched(bench, plan_for(bench, manner), 1, manner)
    assert done.returncode == 1, done.stderr
    assert_named(done.stderr, 1, manner)
    # What a rank failed of by itself is shown, and only that.
    assert done.stderr.count("Traceback") == (manner == "fail")
    assert_nobody_left(bench)


def test_what_goes_on_after_a_loss_ends_as_if_nothing_had_been(bench):
    undisturbed, lost = bench.plan("undisturbed", **CHANGES), bench.plan("killed", **CHANGES)
    assert launch(bench, undisturbed)[0] == [0] * PROCESSES
    assert launched(bench, lost, 0, "kill").returncode == 1
    assert launch(bench, lost)[0] == [0] * PROCESSES
    first, second = record_of(lost).sessions
    assert first.to_step == second.from_step
    assert second.from_step in SAVED
    assert record_of(lost).parameter_checksum == record_of(undisturbed).parameter_checksum


def test_where_something_else_started_the_ranks_a_process_beside_rank_0_outlives_it(bench):
    """And ends when all have: it holds stderr, so that this is read to its end only then."""
    plan = bench.plan("no-launcher", **CHANGES | {"processes": 2})
    port = random.choice(LISTENING_PORTS)
    read, write = os.pipe()
    processes = [
        subprocess.Popen(
            command(plan, 0, "kill"),
            cwd=bench.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | torchrun_variables(rank, 2, port),
            stderr=write,
        )
        for rank in range(2)
    ]
    os.close(write)
    with os.fdopen(read) as stderr:
        said = stderr.read()
    assert [process.wait(HUNG_AFTER_S) for process in processes] == [-signal.SIGKILL, 1], said
    assert_named(said, 0, "kill")
    assert_nobody_left(bench, processes=2)
