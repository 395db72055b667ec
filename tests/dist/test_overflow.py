"""An overflow on one rank: all skip the step, the scale halves, the schedule waits, and the next step is made."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from training import STEPS, Bench, Disturbance, launch, made_bench, record_of, signal_after_step

from fourminutes.train import loop, step
from fourminutes.train.checkpoint import BEST, MARKER

BAD = 3  # the batch of which one rank's loss is infinite


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("overflow")) as made:
        yield made


@contextmanager
def both(one: Disturbance, other: Disturbance) -> Iterator[None]:
    with one(), other():
        yield


@contextmanager
def telling(name: str, *, bad_batches: tuple[int, ...] = ()) -> Iterator[None]:
    """Write what every step came to, and the weights' sum, to a file; the loss of `bad_batches` is infinite here."""
    take_step, batch_loss = loop.take_step, step.batch_loss
    seen = iter(range(1, 1_000_000))

    def told_step(parts: Any, *others: Any) -> Any:
        news = take_step(parts, *others)
        sums = [float(weight.double().sum()) for weight in parts.weights]
        statistics = [float(buffer.double().sum()) for buffer in parts.model.buffers() if buffer.is_floating_point()]
        log.write(json.dumps(asdict(news) | {"weights": sums, "statistics": statistics}) + "\n")
        return news

    def disturbed_loss(parts: Any, batch: Any) -> Any:
        factor = float("inf") if next(seen) in bad_batches else 1.0
        return batch_loss(parts, batch) * factor

    with (
        Path(f"{name}.{os.environ['RANK']}.news").open("w") as log,
        mock.patch.object(loop, "take_step", told_step),
        mock.patch.object(step, "batch_loss", disturbed_loss),
    ):
        yield


def told(bench: Bench, name: str, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench.folder / f"{name}.{rank}.news").read_text().splitlines()]


def checkpoints(bench: Bench, name: str) -> list[str]:
    """The complete ones of a run, the oldest first."""
    return sorted(marker.parent.name for marker in (bench.folder / "work" / name).glob(f"*/step-*/{MARKER}"))


@pytest.mark.parametrize("precision", ["half", "fp32"])
def test_an_infinite_loss_on_one_of_four_ranks(bench, precision):
    name = f"overflow-{precision}"
    plan = bench.plan(name, processes=4, precision=precision, loss_scale={"initial": 256.0})
    disturbances = {rank: partial(telling, name, bad_batches=(BAD,) if rank == 2 else ()) for rank in range(4)}
    statuses, stderr = launch(bench, plan, disturbances)
    assert statuses == [0] * 4, stderr
    ranks = [told(bench, name, rank) for rank in range(4)]
    for news in ranks:
        assert [step["skipped"] for step in news] == [batch == BAD for batch in range(1, STEPS + 1)]
        assert [step["step"] for step in news] == [1, 2, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [step["batch"] for step in news] == list(range(1, STEPS + 1))
        before, skipped, after = news[BAD - 2 : BAD + 1]
        assert skipped["weights"] == before["weights"] != after["weights"]
        assert skipped["rate"] == after["rate"] > before["rate"]  # the warm-up waits
        scales = [before["loss_scale"], skipped["loss_scale"], after["loss_scale"]]
        assert scales == ([256, 128, 128] if precision == "half" else [None] * 3)
        assert [step["weights"] for step in news] == [step["weights"] for step in ranks[0]]
    epochs = record_of(plan).epochs
    assert [epoch.skipped_steps for epoch in epochs] == [1, 0]
    assert [epoch.steps for epoch in epochs] == [STEPS // 2 - 1, STEPS - 1]
    assert [epoch.loss_scale for epoch in epochs] == ([128, 128] if precision == "half" else [None, None])


def test_an_overflow_at_an_epochs_end_keeps_its_checkpoint_and_the_best_weights(bench):
    """The step is skipped, but the weights are as good as they were."""
    last = STEPS // 2
    plan = bench.plan("late", epochs=3, batch={"global_batch": 16, "per_device": 16}, checkpoint={"every_steps": 100})
    stopping = partial(signal_after_step, last + 1, signal.SIGTERM)
    launch(bench, plan, {0: partial(both, partial(telling, "late", bad_batches=(last,)), stopping)})
    assert checkpoints(bench, "late")[0] == f"step-{last:08d}"
    assert len(list((bench.folder / "work" / "late").glob(f"*/{BEST}"))) == 1


def test_a_checkpoint_that_falls_on_a_skipped_step_comes_with_the_next(bench):
    plan = bench.plan("next", batch={"global_batch": 16, "per_device": 16}, checkpoint={"every_steps": BAD})
    stopping = partial(signal_after_step, BAD + 1, signal.SIGTERM)
    launch(bench, plan, {0: partial(both, partial(telling, "next", bad_batches=(BAD,)), stopping)})
    assert checkpoints(bench, "next")[0] == f"step-{BAD + 1:08d}"


def test_a_skipped_step_leaves_batch_norms_running_statistics_alone(bench):
    """A forward pass that overflows would leave infinite ones behind for good."""
    plan = bench.plan("statistics", batch={"global_batch": 16, "per_device": 16})
    launch(bench, plan, {0: partial(telling, "statistics", bad_batches=(BAD,))})
    before, skipped, after = told(bench, "statistics", 0)[BAD - 2 : BAD + 1]
    assert skipped["skipped"]
    assert skipped["statistics"] == before["statistics"] != after["statistics"]
