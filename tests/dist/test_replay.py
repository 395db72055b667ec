"""Replayed steps: real reductions of gradients that come when they are told to, and a record that grows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_ranks

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse_by_size
from fourminutes.comm.hook import HybridState
from fourminutes.comm.launch import Launch
from fourminutes.comm.replay import Replayed, replay_steps
from fourminutes.comm.topology import discover
from fourminutes.comm.tuner import Readiness
from fourminutes.plan import ReducePlan
from fourminutes.record import ReplayRecord, read_record

BIN = Path(sys.executable).parent
CASES = {
    "model": {"name": "resnet_small", "image_px": 32},
    "classes": 10,
    "forward_s": 0.01,
    "repeats": 3,
    "cases": {
        "ring": {"backward_s": 0.05, "reduce": {"bucket_mib": 0.1, "lanes": 1}},
        "pairs": {"backward_s": 0.05, "reduce": {"algorithm": "hierarchical", "group_ranks": 2, "wire": "fp16"}},
    },
}


# --- one step -------------------------------------------------------------------------------------------------------


def _gradients(launch: Launch) -> tuple[list[list[float]], list[int]]:
    """Gradients after one replayed pass, and the order in which buckets were laid out."""
    readiness = Readiness((16, 8, 40), (0.03, 0.02, 0.01))
    state = HybridState(discover(launch), ReducePlan(bucket_mib=1e-9))
    network = Replayed(readiness)
    parallel = FlatParallel(network, state, fuse_by_size(readiness.tensor_bytes, 1))
    network.clock.begin()
    parallel(torch.zeros(1, requires_grad=True)).backward()
    layout = state.layout
    state.close()
    return [weight.grad.tolist() for weight in network.weights if weight.grad is not None], layout


def test_every_gradient_is_averaged_once_the_last_one_first() -> None:
    for gradients, layout in run_ranks(_gradients, 2):
        assert gradients == [[1.0] * 4, [1.0] * 2, [1.0] * 10]
        assert layout == [10, 2, 4]


def _steps(launch: Launch, backward_s: float) -> list[float]:
    readiness = Readiness((4096, 4096), (backward_s, backward_s / 2))
    topology = discover(launch)
    return replay_steps(readiness, ReducePlan(lanes=1), topology, forward_s=0.05, optimizer_s=0.02, repeats=3)


def test_a_step_is_no_shorter_than_its_computing_and_all_ranks_know_the_same() -> None:
    one, other = run_ranks(_steps, 2, 0.1)
    assert one == other
    assert len(one) == 3
    assert min(one) >= 0.05 + 0.1 + 0.02


# --- the command ----------------------------------------------------------------------------------------------------


def replay(folder: Path, cases: dict[str, object], processes: int = 2) -> subprocess.CompletedProcess[str]:
    (folder / "cases.yaml").write_text(json.dumps(cases))
    launch = [BIN / "fourminutes", "launch", "--processes", str(processes), "--"]
    command = ["fourminutes", "scale", "replay", folder / "cases.yaml", "--out", folder / "replay.json"]
    return subprocess.run(
        [*launch, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={"OMP_NUM_THREADS": "1", "PATH": str(BIN)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured replay."""
    folder = tmp_path_factory.mktemp("replay")
    done = replay(folder, CASES)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_case_is_measured_and_the_collectives_beside_them(folder: Path) -> None:
    record = read_record(folder / "replay.json", ReplayRecord)
    assert list(record.cases) == ["ring", "pairs"]
    assert [len(case.step_s) for case in record.cases.values()] == [3, 3]
    assert {(timing.algorithm, timing.wire) for timing in record.timings} >= {
        ("ring", "fp32"),
        ("hierarchical", "fp16"),
    }
    assert len(record.tensor_bytes) == len(record.ready_s) == 29


def test_a_second_start_measures_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    before = (folder / "replay.json").read_text()
    (tmp_path / "replay.json").write_text(before)
    assert replay(tmp_path, CASES).returncode == 0
    assert (tmp_path / "replay.json").read_text() == before
    more = {**CASES, "cases": {**CASES["cases"], "one bucket": {"backward_s": 0.05}}}
    assert replay(tmp_path, more).returncode == 0
    old, new = json.loads(before), json.loads((tmp_path / "replay.json").read_text())
    assert list(new["cases"]) == ["ring", "pairs", "one bucket"]
    assert (new["timings"], new["cases"]["ring"]) == (old["timings"], old["cases"]["ring"])


def test_one_that_ended_among_the_collectives_goes_on_with_the_next_size(folder: Path, tmp_path: Path) -> None:
    whole = json.loads((folder / "replay.json").read_text())
    half = len(whole["timings"]) // 2
    begun = {**whole, "timings": whole["timings"][:half], "bucket_s": None, "cases": {}}
    (tmp_path / "replay.json").write_text(json.dumps(begun))
    assert replay(tmp_path, CASES).returncode == 0
    done = json.loads((tmp_path / "replay.json").read_text())
    assert done["timings"][:half] == whole["timings"][:half]
    what = ("algorithm", "group_ranks", "wire", "message_bytes")
    assert [[one[key] for key in what] for one in done["timings"]] == [
        [one[key] for key in what] for one in whole["timings"]
    ]
    assert done["bucket_s"] is not None


def test_a_record_of_other_settings_is_left_as_it_is(folder: Path) -> None:
    before = (folder / "replay.json").read_text()
    done = replay(folder, {**CASES, "forward_s": 0.02})
    assert done.returncode == 2
    assert "holds steps of other settings or processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "replay.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ready_s": [0.1, 0.2]}, "2 moments, but resnet_small has 29 gradients"),
        ({"repeat": 3}, "repeats"),
        ({"cases": {}}, "cases"),
    ],
    ids=["moments", "unknown key", "no case"],
)
def test_wrong_cases_are_one_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    done = replay(tmp_path, {**CASES, **change})
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "replay.json").exists()
