"""Timing a run's steps, as a user starts it: what is measured adds up, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
from training import DATA, RUN, Bench, made_bench, signal_after_step

from fourminutes.cli import main
from fourminutes.comm.launch import Launch
from fourminutes.errors import EXIT_INTERRUPTED, Interrupted, UserError
from fourminutes.plan import Plan, load_plan, series_settings
from fourminutes.progress import progress
from fourminutes.record import ScalingRecord, read_record, write_record
from fourminutes.report.evidence import gather
from fourminutes.train import measure_scaling, train
from fourminutes.train.accounting import PARTS
from fourminutes.train.held import HeldInput
from fourminutes.train.listen import StepNews
from fourminutes.train.scaling import Counted
from fourminutes.train.source import Position
from fourminutes.train.timeline import Timeline, summed

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
SERIES: dict[str, Any] = {
    "weak": {"run": "run", "world_sizes": [1, 2], "input": "synthetic", "warmup_steps": 2, "steps": 2, "repeats": 7},
    "strong": {"run": "run", "mode": "strong", "world_sizes": [1, 2, 8], "input": "synthetic"},
    # Of 5 steps an epoch, so that it goes through several.
    "real": {"run": "run", "world_sizes": [1], "warmup_steps": 2, "steps": 2, "repeats": 7},
    "endless": {"run": "run", "world_sizes": [1, 2], "input": "synthetic", "steps": 100_000},
}
STEPS = 2 + 2 * 7


def written_plan(folder: Path, **changes: Any) -> Path:
    path = folder / "timed.yaml"
    path.write_text(yaml.safe_dump({"name": "timed", "data": DATA, "runs": {"run": RUN | changes}, "scaling": SERIES}))
    return path


def command(folder: Path, series: str, processes: int) -> list[str]:
    names = ["--plan", "timed.yaml", "--series", series, "--processes", str(processes)]
    out = ["--out", str(folder / "out" / f"{series}-{processes}.json")]
    return ["fourminutes", "scale", "measure", *names, *out]


def launched(folder: Path, series: str, processes: int) -> list[str]:
    return ["fourminutes", "launch", "--processes", str(processes), "--", *command(folder, series, processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic series, measured by the command where no data set is made."""
    folder = tmp_path_factory.mktemp("timed")
    written_plan(folder, processes=2)
    for processes in (1, 2):
        subprocess.run(launched(folder, "weak", processes), check=True, cwd=folder, env=ENVIRONMENT, timeout=300)
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def record(request: pytest.FixtureRequest, folder: Path) -> ScalingRecord:
    return read_record(folder / "out" / f"weak-{request.param}.json", ScalingRecord)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.fixture
def plan(bench: Bench) -> Plan:
    """With the data set made."""
    plan = load_plan(written_plan(bench.folder))
    write_record(plan.manifest, bench.manifest)
    return plan


# --- what is measured -----------------------------------------------------------------------------------------------


def assert_adds_up(record: ScalingRecord) -> None:
    assert len(record.repeats) == 7
    for repeat, rate in zip(record.repeats, record.images_per_s, strict=True):
        assert len(repeat.steps_s) == 2
        assert sum(repeat.steps_s) == pytest.approx(repeat.times.total_s)
        assert sum(getattr(repeat.times, f"{part}_s") for part in PARTS) == pytest.approx(repeat.times.total_s)
        assert min(repeat.times.forward_s, repeat.times.backward_s, repeat.times.optimizer_s) > 0
        assert len(repeat.waited_s) == record.processes
        assert repeat.waited_s[0] == pytest.approx(repeat.times.exposed_reduce_s)
        assert (repeat.times.evaluation_s, repeat.times.checkpoint_s) == (0, 0)
        images = record.settings.batch.global_batch * len(repeat.steps_s)
        assert rate * repeat.times.total_s == pytest.approx(images)


def test_the_numbers_of_a_record_add_up(record: ScalingRecord) -> None:
    assert_adds_up(record)
    assert record.skipped_steps == 0


def test_a_record_says_what_was_timed_and_where(record: ScalingRecord, folder: Path) -> None:
    plan = load_plan(folder / "timed.yaml")
    assert (record.plan, record.series, record.measured) == ("timed", "weak", plan.scaling["weak"])
    assert record.settings == series_settings(plan, "weak", record.processes)
    assert len(record.placement.hosts) == record.processes
    assert record.placement.backend == (None if record.processes == 1 else "gloo")
    assert (record.class_count, record.dataset_hash) == (4, None)


def test_only_several_processes_reduce_gradients_and_may_wait_for_them(record: ScalingRecord) -> None:
    waited_s = sum(repeat.times.exposed_reduce_s for repeat in record.repeats)
    if record.processes == 1:
        assert (record.reduction, waited_s) == (None, 0)
    else:
        assert record.reduction is not None
        assert sum(record.reduction.buckets) == record.parameters
        assert waited_s > 0


def test_one_process_has_an_efficiency_of_100_percent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plan = load_plan(Path("timed.yaml"))
    for processes in (1, 2):
        own = read_record(folder / "out" / f"weak-{processes}.json", ScalingRecord)
        write_record(plan.scaling_record("weak", processes), own)
    one, two = gather(plan).scalings
    assert one.of_process is not None
    assert (one.of_process.low, one.of_process.value, one.of_process.high) == (100, 100, 100)
    assert two.of_process is not None
    assert two.of_process.value == pytest.approx(100 * two.rate.value / (2 * one.rate.value))
    assert (one.outdated, two.outdated) == (False, False)


def test_real_input_goes_on_from_epoch_to_epoch_and_takes_just_the_steps_that_are_asked_for(plan: Plan) -> None:
    taken: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        record = measure_scaling(plan, "real", 1)
    finally:
        handle.remove()
    assert record is not None
    assert len(taken) == STEPS
    assert_adds_up(record)
    assert record.dataset_hash is not None
    assert all(repeat.times.input_wait_s > 0 for repeat in record.repeats)


def test_weights_and_records_of_the_run_are_not_touched(plan: Plan) -> None:
    assert train(plan, "run") is not None
    before = _files(Path("work"), Path("results"))
    assert before
    assert measure_scaling(plan, "real", 1) is not None
    assert _files(Path("work"), Path("results")) == before


def test_nothing_but_the_record_is_written(folder: Path) -> None:
    written = {path.name for path in folder.iterdir()}
    assert written <= {"timed.yaml", "out", "results"}  # another test may have put the records there
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["weak-1.json", "weak-2.json"]


def _files(*folders: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- what is refused, and what is interrupted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "processes", "says"),
    [
        ("strong", 3, "scaling.strong: 3 processes: they cannot share batch.global_batch 16"),
        ("weak", 2, "series 'weak': its plan asks for 2 processes, but 1 were started"),
        ("weka", 1, "plan 'timed' has no series 'weka'; did you mean 'weak'?"),
        ("real", 1, "results/timed/manifest.json: the data set is not made yet"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series: str, processes: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(written_plan(tmp_path))
    with pytest.raises(UserError) as refusal:
        measure_scaling(plan, series, processes)
    assert says in str(refusal.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_an_interrupted_measurement_leaves_nothing(
    bench: Bench, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(sys, "argv", command(tmp_path, "weak", 1))
    with signal_after_step(STEPS // 2, number), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_INTERRUPTED
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_before_the_last_step_is_not_lost(plan: Plan) -> None:
    with signal_after_step(STEPS, signal.SIGTERM), pytest.raises(Interrupted, match="nothing is kept"):
        measure_scaling(plan, "weak", 1)


def test_several_processes_stop_together_and_leave_nothing(tmp_path: Path) -> None:
    written_plan(tmp_path)
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(
        launched(tmp_path, "endless", 2), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        said = _until(process, "endless-2")
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == EXIT_INTERRUPTED, said
    assert "nothing is kept of a measurement" in said
    assert list((tmp_path / "out").iterdir()) == []


def _until(process: subprocess.Popen[str], word: str) -> str:
    """What the process says up to the line with `word`, as that of its progress."""
    said = ""
    assert process.stderr is not None
    while word not in said and (line := process.stderr.readline()):
        said += line
    assert word in said
    return said


# --- the parts of it ------------------------------------------------------------------------------------------------


def test_the_steps_of_a_timeline_add_up_to_what_its_clock_counted() -> None:
    clock = Timeline(torch.device("cpu"))
    for _ in range(3):
        for part in ("other", "forward", "backward", "forward", "backward", "optimizer"):
            clock.lap(part)
        clock.end_step(exposed_s=1e-9)
    steps = clock.steps()
    assert len(steps) == 3
    assert sum(step.total_s for step in steps) == pytest.approx(sum(clock.spent_s().values()))
    assert [step.exposed_reduce_s for step in steps] == [1e-9] * 3
    whole = summed(steps)
    assert whole.total_s == pytest.approx(sum(step.total_s for step in steps))
    assert whole.compute_s == pytest.approx(sum(step.compute_s for step in steps))


def test_time_that_is_passed_over_belongs_to_no_step() -> None:
    clock = Timeline(torch.device("cpu"))
    clock.lap("optimizer")
    clock.end_step(0.0)
    torch.randn(500, 500) @ torch.randn(500, 500)
    clock.pass_over()
    clock.lap("optimizer")
    clock.end_step(0.0)
    assert sum(step.total_s for step in clock.steps()) == pytest.approx(sum(clock.spent_s().values()))


def test_skipped_steps_are_counted_after_the_warm_up() -> None:
    with progress(4, "step", "test", enabled=False) as bar:
        counted = Counted(bar, warmup_steps=2)
        for batch, skipped in enumerate((True, True, True, False), start=1):
            counted.step(StepNews(batch, batch, 1.0, 0.1, None, skipped=skipped))
    assert counted.skipped == 1


def test_a_held_batch_is_as_the_loader_s_and_each_rank_has_its_own(plan: Plan) -> None:
    settings = series_settings(plan, "weak", 1)
    batches = [_held(plan, rank) for rank in (0, 0, 1)]
    images, labels = batches[0]
    assert images.shape == (settings.batch.per_device, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.max() < 4
    assert torch.equal(images, batches[1][0])
    assert not torch.equal(images, batches[2][0])


def _held(plan: Plan, rank: int) -> Sequence[torch.Tensor]:
    launch = Launch("torchrun", rank, 2, rank, 2, init_method=None)
    source = HeldInput(series_settings(plan, "weak", 1), 4, launch, torch.device("cpu"), steps=3)
    return next(source.training(Position()).epoch())
