"""Tuning over real processes: the command, a run that names its file, and a run that tunes as it starts."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from torch import nn
from training import MIDDLE, Bench, launch, made_bench, record_of, signal_after_step

from fourminutes.comm.launch import Launch
from fourminutes.comm.ready import readiness_of
from fourminutes.plan import AlgorithmChoice
from fourminutes.record import Tuning, read_record, write_record
from fourminutes.train import tuning as tuning_of_runs

BIN = Path(sys.executable).parent
FOUR: dict[str, Any] = {"processes": 4, "batch": {"global_batch": 16, "per_device": 4}}
_TUNE_S = 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("tune")) as made:
        yield made


@pytest.fixture(scope="module")
def tuned(bench: Bench) -> Path:
    """The file of the command, for a run of four processes."""
    bench.plan("asked", **FOUR)
    path = bench.folder / "tuning.json"
    command = ["fourminutes", "comm", "tune", "--plan", bench.path("asked"), "--run", "run", "--out", path]
    done = subprocess.run(
        [BIN / "fourminutes", "launch", "--processes", "4", "--", *command, "--seconds", str(_TUNE_S)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env={"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:/usr/bin:/bin"},
    )
    assert "choice" in done.stdout
    assert "bucket MiB" in done.stdout
    return path


def test_the_command_leaves_choices_fits_and_a_bucket_size(tuned: Path) -> None:
    tuning = read_record(tuned, Tuning)
    assert (tuning.plan, tuning.run, tuning.wire, len(tuning.placement.hosts)) == ("asked", "run", "fp32", 4)
    assert tuning.choices[-1].up_to_kib is None
    assert {timing.algorithm for timing in tuning.timings} == {"ring", "hierarchical", "torus"}
    assert {fit.stage.partition(",")[0] for fit in tuning.stages} == {
        "all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather",
    }  # fmt: skip
    # The backward pass comes to the last layer first.
    assert tuning.ready_s[-1] < tuning.ready_s[0]
    assert tuning.bucket_mib in {one.bucket_mib for one in tuning.fusions}


@pytest.mark.parametrize("front_end", ["ddp", "flat"])
def test_a_run_takes_what_its_tuning_chose_and_its_record_repeats_it(bench: Bench, tuned: Path, front_end: str) -> None:
    reduce = {"algorithm": "hybrid", "tuning": str(tuned), "front_end": front_end}
    plan = bench.plan(f"named-{front_end}", **FOUR, reduce=reduce)
    codes, log = launch(bench, plan)
    assert codes == [0] * 4, log
    reduction, tuning = record_of(plan).reduction, read_record(tuned, Tuning)
    assert reduction is not None
    assert (reduction.settings.choices, reduction.settings.bucket_mib) == (tuning.choices, tuning.bucket_mib)
    assert sum(reduction.buckets) == record_of(plan).parameters


def test_a_tuning_for_other_processes_is_refused_in_one_line(bench: Bench, tuned: Path) -> None:
    reduce = {"algorithm": "hybrid", "tuning": str(tuned)}
    codes, log = launch(bench, bench.plan("two", processes=2, reduce=reduce))
    assert codes == [2, 2]
    assert f"{tuned}: was tuned for 4 processes on 1 host, not 2 processes on 1 host" in log
    assert "Traceback" not in log


def test_a_tuning_for_another_number_format_is_refused(bench: Bench, tuned: Path) -> None:
    reduce = {"algorithm": "hybrid", "tuning": str(tuned), "wire": "fp16"}
    codes, log = launch(bench, bench.plan("other-wire", **FOUR, reduce=reduce))
    assert codes == [2] * 4
    assert "was tuned for fp32 on the wire, not fp16" in log


@contextmanager
def quickly(interrupted_after: int | None = None) -> Iterator[None]:
    """With little time to tune in, and maybe a signal after a step."""
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(tuning_of_runs, "_AUTO_BUDGET_S", _TUNE_S)
        if interrupted_after is not None:
            stack.enter_context(signal_after_step(interrupted_after, signal.SIGTERM))
        yield


def test_a_run_that_tunes_itself_goes_on_with_what_it_chose_at_first(bench: Bench) -> None:
    plan = bench.plan("auto", **FOUR, reduce={"algorithm": "auto"})
    codes, log = launch(bench, plan, dict.fromkeys(range(4), partial(quickly, MIDDLE)))
    assert codes == [75] * 4, log
    (kept,) = (bench.folder / "work" / "auto").rglob("tuning.json")
    before = kept.read_bytes()
    # No time to tune again: it would show.
    codes, log = launch(bench, plan)
    assert codes == [0] * 4, log
    record = record_of(plan)
    assert kept.read_bytes() == before
    assert record.reduction is not None
    assert record.reduction.settings.choices == read_record(kept, Tuning).choices

    # The same choices, by name and undisturbed, give the same bits.
    write_record(bench.folder / "kept.json", read_record(kept, Tuning))
    named = bench.plan("same", **FOUR, reduce={"algorithm": "hybrid", "tuning": "kept.json"})
    codes, log = launch(bench, named)
    assert codes == [0] * 4, log
    assert record_of(named).parameter_checksum == record.parameter_checksum


def test_a_damaged_tuning_of_before_is_made_anew_and_the_record_says_that_sums_may_differ(bench: Bench) -> None:
    plan = bench.plan("again", **FOUR, reduce={"algorithm": "auto"})
    codes, log = launch(bench, plan, dict.fromkeys(range(4), partial(quickly, MIDDLE)))
    assert codes == [75] * 4, log
    (kept,) = (bench.folder / "work" / "again").rglob("tuning.json")
    tuning = read_record(kept, Tuning)
    other = AlgorithmChoice(algorithm="torus", group_ranks=2)
    write_record(kept, tuning.model_copy(update={"choices": (other,)}))
    codes, log = launch(bench, plan, dict.fromkeys(range(4), quickly))
    assert codes == [0] * 4, log
    record = record_of(plan)
    assert record.reduction is not None
    assert record.reduction.settings.choices == (other,)
    assert "summed in another way than before" in record.sessions[1].note

    # And a damaged file, at another start, holds nobody up.
    plan = bench.plan("damaged", **FOUR, reduce={"algorithm": "auto"})
    assert launch(bench, plan, dict.fromkeys(range(4), partial(quickly, MIDDLE)))[0] == [75] * 4
    (kept,) = (bench.folder / "work" / "damaged").rglob("tuning.json")
    kept.write_text("{")
    codes, log = launch(bench, plan, dict.fromkeys(range(4), quickly))
    assert codes == [0] * 4, log
    assert read_record(kept, Tuning).choices


class Branched(nn.Module):
    """Three layers, of which the second takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(3)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.layers[0](images))  # type: ignore[no-any-return]


def readiness_on_each_rank(launch: Launch) -> tuple[Any, bool, bool]:
    network = Branched()
    found = readiness_of(network, torch.ones(8, 64))
    left = all(weight.grad is None for weight in network.parameters())
    return found, left, network.training


def test_gradients_are_ready_in_backward_order_and_the_slowest_rank_counts() -> None:
    answers = run_ranks(readiness_on_each_rank, 2)
    assert answers[0] == answers[1]
    found, left, is_training = answers[0]
    assert left
    assert is_training
    assert found.tensor_bytes == (4 * 64 * 64,) * 3
    first, unused, last = found.ready_s
    assert 0 < last < first <= unused
