"""A rank that trains something else, or has drifted from the others, is named on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from processes import run_ranks
from torch.optim.optimizer import register_optimizer_step_post_hook
from training import STEPS, Bench, launch, made_bench, record_of

from fourminutes.comm.launch import Launch
from fourminutes.errors import UserError
from fourminutes.plan import ModelPlan
from fourminutes.train import setup
from fourminutes.train.agreement import checksums, require_agreement
from fourminutes.train.ranks import Ranks


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("agreement")) as made:
        yield made


def told(launch: Launch, odd: int) -> str:
    ranks = Ranks.of(launch, timeout_s=60)
    hosts = [f"host-{rank}" for rank in range(launch.world_size)]
    require_agreement(ranks, hosts, {"plan": "mine", "data": "these"})
    with pytest.raises(UserError) as refusal:
        require_agreement(ranks, hosts, {"plan": "mine", "data": "those" if launch.rank == odd else "these"})
    return str(refusal.value)


def test_whoever_differs_from_most_is_named_on_all_ranks() -> None:
    for line in run_ranks(told, 3, 0):
        assert line.startswith("rank 0 on host-0: its data is those, that of most ranks these; start all ranks")


@contextmanager
def another_network() -> Iterator[None]:
    build_model = setup.build_model

    def wider(plan: ModelPlan, classes: int, *, seed: int) -> Any:
        return build_model(plan.model_copy(update={"width": 2 * plan.width}), classes, seed=seed)

    with mock.patch.object(setup, "build_model", wider):
        yield


@pytest.mark.parametrize("front_end", ["ddp", "flat"])
def test_another_network_on_one_rank_ends_all_before_they_wait_for_it(bench, front_end):
    plan = bench.plan(f"wider-{front_end}", processes=4, reduce={"front_end": front_end})
    statuses, stderr = launch(bench, plan, {1: another_network})
    assert statuses == [2] * 4
    (line,) = [line for line in stderr.splitlines() if line.startswith("fourminutes:")]
    assert line.startswith("fourminutes: rank 1 on ")
    assert ": its network is " in line
    assert "tensors" in line


@contextmanager
def a_flipped_bit(step: int) -> Iterator[None]:
    """After that step, the lowest bit of one weight is another one, as a broken memory leaves it."""
    left = iter(range(step - 1, -1, -1))

    def flip(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if next(left, None) == 0:
            weight = optimizer.param_groups[0]["params"][1].data
            weight.view(torch.int32)[(0,) * weight.dim()] ^= 1

    handle = register_optimizer_step_post_hook(flip)
    try:
        yield
    finally:
        handle.remove()


def test_a_rank_that_drifts_is_named_and_the_run_goes_on_from_before(bench):
    changes = {"processes": 4, "checkpoint": {"every_steps": 2}, "reduce": {"check_every_steps": 4}}
    plan, whole = bench.plan("drifted", **changes), bench.plan("sound", **changes)
    assert launch(bench, whole)[0] == [0] * 4
    statuses, stderr = launch(bench, plan, {2: partial(a_flipped_bit, 3)})
    assert statuses == [1] * 4
    (line,) = [line for line in stderr.splitlines() if line.startswith("fourminutes:")]
    assert "rank 2 on " in line
    assert "has drifted: after step 4 its " in line
    assert ".weight is not that of most ranks" in line
    assert launch(bench, plan)[0] == [0] * 4
    assert record_of(plan).parameter_checksum == record_of(whole).parameter_checksum
    assert record_of(plan).epochs[-1].steps == STEPS


def test_weights_are_compared_bit_for_bit_in_every_format() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = torch.linspace(-1, 1, 24, dtype=dtype).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        other = tensor.clone()
        assert torch.equal(checksums([tensor]), checksums([other]))
        other.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])[1, 2, 0, 1] ^= 1
        assert not torch.equal(checksums([tensor]), checksums([other]))
