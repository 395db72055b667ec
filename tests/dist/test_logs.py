"""What a real run leaves beside its record: TensorBoard's curves, and an MLPerf log that MLPerf's own checker reads."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.mlperf_checker import failures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import DATA, MIDDLE, STEPS, Bench, made_bench, signal_after_step

from fourminutes.errors import Interrupted
from fourminutes.plan import Plan, load_plan
from fourminutes.record import RunRecord
from fourminutes.train import train

RECIPES = Path(__file__).resolve().parents[2] / "config" / "recipes.yaml"
RUN: dict[str, Any] = {
    "recipe": "mlperf-8k",
    "epochs": 2,
    "model": {"width": 0.125, "image_px": 32},
    "schedule": {"warmup_epochs": 1},
    "batch": {"global_batch": 16, "per_device": 16},
    "loader": {"threads": 1, "chunk_images": 8, "shuffle_window_images": 32},
    "checkpoint": {"every_steps": 3},
    "evaluation": {"recalibration_images": 32},
}
MLPERF = {"organization": "Somebody", "platform": "a desktop", "division": "closed", "status": "research"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("logs")) as made:
        (made.folder / "config").mkdir()
        (made.folder / "config" / "recipes.yaml").symlink_to(RECIPES)
        yield made


def mlperf_plan(bench: Bench, name: str) -> Plan:
    bench.path(name).write_text(yaml.safe_dump({"name": name, "data": DATA, "runs": {"run": RUN}, "mlperf": MLPERF}))
    plan = load_plan(bench.path(name))
    plan.manifest.parent.mkdir(parents=True, exist_ok=True)
    plan.manifest.write_text(bench.manifest.model_dump_json())
    return plan


@pytest.fixture(scope="module")
def undisturbed(bench) -> RunRecord:
    record = train(mlperf_plan(bench, "undisturbed"), "run")
    assert record is not None
    return record


@pytest.fixture(scope="module")
def resumed(bench) -> RunRecord:
    plan = mlperf_plan(bench, "resumed")
    with signal_after_step(MIDDLE, signal.SIGTERM), pytest.raises(Interrupted):
        train(plan, "run")
    record = train(plan, "run")
    assert record is not None
    return record


@pytest.mark.parametrize("name", ["undisturbed", "resumed"])
def test_mlperfs_checker_misses_nothing_but_the_accuracy(name, request):
    request.getfixturevalue(name)
    (failure,) = failures(Path(f"results/{name}/mlperf/run.log"))
    assert "eval_accuracy" in failure


@pytest.mark.parametrize("name", ["undisturbed", "resumed"])
def test_tensorboard_has_every_batch_once(name, request):
    record = request.getfixturevalue(name)
    events = EventAccumulator(f"logs/{name}/tensorboard/run").Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    top1 = [event.value for event in events.Scalars("validation/top1_percent")]
    assert top1 == pytest.approx([epoch.top1_percent for epoch in record.epochs])


def test_recalibrated_statistics_resume_to_the_same_bits(undisturbed, resumed):
    assert resumed.parameter_checksum == undisturbed.parameter_checksum
    assert [epoch.val_loss for epoch in resumed.epochs] == [epoch.val_loss for epoch in undisturbed.epochs]
