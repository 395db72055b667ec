"""Going on after SIGKILL: bit for bit on the same number of processes, from the epoch's start on another."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from training import MIDDLE, STEPS, Bench, assert_whole, launch, made_bench, record_of, signal_after_step

from fourminutes.plan import Plan
from fourminutes.train.checkpoint import FINAL

KILLS = 10
MOST_STEPS_BETWEEN = 5
# Dropout, so that every rank's random state matters; several buckets, so that the order of sums does.
WITH_DROPOUT: dict[str, Any] = {
    "epochs": 12,
    "model": {"name": "alexnet_bn", "image_px": 31, "width": 0.03},
    "checkpoint": {"every_steps": 2, "keep": 2},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("resume")) as made:
        yield made


@contextmanager
def killed_at_random(steps: int, delay_s: float) -> Iterator[None]:
    """SIGKILL this process `delay_s` after it has made that many steps, wherever it is by then."""
    left = iter(range(steps - 1, -1, -1))

    def count(*_: object) -> None:
        if next(left, None) == 0:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def final_weights(plan: Plan) -> dict[str, torch.Tensor]:
    (final,) = (plan.work / plan.name).glob(f"*/{FINAL}")
    weights: dict[str, torch.Tensor] = torch.load(final, weights_only=True)
    return weights


def test_ten_kills_at_random_moments_cost_no_bit(bench):
    """Four ranks: with two, sums in another order are the same."""
    undisturbed = bench.plan("whole", processes=4, **WITH_DROPOUT)
    killed = bench.plan("killed", processes=4, **WITH_DROPOUT)
    assert launch(bench, undisturbed)[0] == [0] * 4
    moments = random.Random(7)
    for _ in range(KILLS):
        rank, steps, delay_s = moments.randrange(4), moments.randint(1, MOST_STEPS_BETWEEN), moments.uniform(0, 0.05)
        statuses, stderr = launch(bench, killed, {rank: partial(killed_at_random, steps, delay_s)})
        assert -signal.SIGKILL in statuses, stderr
        assert not killed.run_record("run").exists()
    assert launch(bench, killed)[0] == [0] * 4
    record, whole = record_of(killed), record_of(undisturbed)
    assert record.parameter_checksum == whole.parameter_checksum
    for name, weights in final_weights(undisturbed).items():
        assert torch.equal(weights, final_weights(killed)[name]), name
    assert [(epoch.train_loss, epoch.val_loss, epoch.steps) for epoch in record.epochs] == [
        (epoch.train_loss, epoch.val_loss, epoch.steps) for epoch in whole.epochs
    ]
    # Every start is told of, and they follow one another without a gap.
    assert len(record.sessions) == KILLS + 1
    for before, after in zip(record.sessions, record.sessions[1:], strict=False):
        assert before.ended == "running"
        assert before.to_step == after.from_step
        assert after.note == ("" if after.from_step < after.to_step else "ended before its first checkpoint")


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_another_number_of_processes_begins_the_interrupted_epoch_again(bench, before, after):
    name = f"from-{before}-to-{after}"
    stopped = bench.plan(name, processes=before)
    statuses, _ = launch(bench, stopped, {0: partial(signal_after_step, MIDDLE, signal.SIGTERM)})
    assert statuses == [75] * before
    statuses, stderr = launch(bench, bench.plan(name, processes=after))
    assert statuses == [0] * after
    assert f"written by {before} processes" in stderr
    record = record_of(stopped)
    assert_whole(record, bench.manifest)
    assert [session.from_step for session in record.sessions] == [0, STEPS // 2]
    assert record.sessions[-1].note.endswith(
        f"written by {before} processes, now {after}: the interrupted epoch starts again from step {STEPS // 2}"
    )
    assert record.settings.processes == after


def test_another_number_of_processes_within_the_first_epoch_starts_anew(bench):
    stopped = bench.plan("anew", processes=2)
    launch(bench, stopped, {1: partial(signal_after_step, 2, signal.SIGTERM)})
    plan = bench.plan("anew", processes=1)
    statuses, stderr = launch(bench, plan)
    assert statuses == [0]
    assert "the run starts anew" in stderr
    (session,) = record_of(plan).sessions
    assert session.from_step == 0
    assert session.note.endswith("so the run starts anew")


def test_static_buffers_and_the_hybrid_go_on_bit_for_bit_too(bench):
    """And come to what DDP's buckets and the ring come to, but for rounding."""
    choices = [{"algorithm": "hierarchical", "up_to_kib": 4}, {"algorithm": "torus"}]
    reduce = {"front_end": "flat", "algorithm": "hybrid", "choices": choices, "group_ranks": 2, "bucket_mib": 0.01}
    undisturbed = bench.plan("flat", processes=4, reduce=reduce)
    assert launch(bench, undisturbed)[0] == [0] * 4
    stopped = bench.plan("flat-stopped", processes=4, reduce=reduce)
    assert launch(bench, stopped, {3: partial(signal_after_step, MIDDLE, signal.SIGTERM)})[0] == [75] * 4
    assert launch(bench, stopped)[0] == [0] * 4
    record, whole = record_of(stopped), record_of(undisturbed)
    assert record.parameter_checksum == whole.parameter_checksum
    assert [session.note for session in record.sessions] == ["", ""]
    ring = bench.plan("flat-ring", processes=4)
    assert launch(bench, ring)[0] == [0] * 4
    for one, other in zip(record_of(ring).epochs, whole.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
