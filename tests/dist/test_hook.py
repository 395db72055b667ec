"""The communication hook gives DDP's own gradients, whatever the algorithm, the wire, the delays and the buckets."""

import hashlib
import random
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from processes import run_ranks
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.hook import HybridState, hybrid_hook, predivisor
from fourminutes.comm.launch import ALONE, Launch
from fourminutes.comm.topology import discover
from fourminutes.plan import ReducePlan

BUCKET_MIB = 0.001
FEW_STEPS = 40
TOLERANCE = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}


def deep_model(layers: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.LayerNorm(24), torch.nn.Tanh()) for _ in range(layers)
    ]
    return torch.nn.Sequential(*blocks, torch.nn.Linear(24, 3))


def wrapped(layers: int = 6) -> DistributedDataParallel:
    return DistributedDataParallel(deep_model(layers), bucket_cap_mb=BUCKET_MIB)


def gradients(model: DistributedDataParallel, rank: int, steps: int = 2, micro_batches: int = 2) -> list[torch.Tensor]:
    """All gradients of some steps, each accumulated over micro-batches of which only the last is reduced."""
    generator = torch.Generator().manual_seed(rank)
    collected = []
    for _ in range(steps):
        model.zero_grad()
        with model.no_sync():
            for _ in range(micro_batches - 1):
                model(torch.randn(8, 24, generator=generator)).square().sum().backward()
        model(torch.randn(8, 24, generator=generator)).square().sum().backward()
        collected += [parameter.grad.clone() for parameter in model.parameters()]
    return collected


def same_gradients_as_ddp(launch: Launch) -> int:
    expected = gradients(wrapped(), launch.rank)
    topology = discover(launch, 2)
    compared = 0
    for algorithm in ("ring", "hierarchical"):
        for wire, tolerance in TOLERANCE.items():
            model = wrapped()
            with closing(HybridState(topology, ReducePlan(algorithm=algorithm, wire=wire))) as state:
                model.register_comm_hook(state, hybrid_hook)
                for ours, theirs in zip(gradients(model, launch.rank), expected, strict=True):
                    scale = theirs.abs().max().item()
                    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)
                    compared += 1
    return compared


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_gradients_are_those_of_ddp_to_rounding(world_size: int) -> None:
    compared = run_ranks(same_gradients_as_ddp, world_size)
    assert compared == [6 * 2 * len(list(deep_model().parameters()))] * world_size


def delayed_gradients(launch: Launch, steps: int) -> list[str]:
    """Gradients of a model of many buckets, each rank held up before random gradients by work of random length.

    A digest of the first `FEW_STEPS` steps, and one of all.
    """
    chance = random.Random(launch.rank)
    model = wrapped(layers=40)
    topology = discover(launch, 2)
    ballast = torch.ones(150, 150)

    def hold_up(_: torch.Tensor) -> None:
        for _ in range(chance.choice([0, 0, 0, 5, 20])):
            torch.mm(ballast, ballast)

    for parameter in model.parameters():
        parameter.register_hook(hold_up)
    with closing(HybridState(topology, ReducePlan(algorithm="hierarchical", wire="fp16"))) as state:
        model.register_comm_hook(state, hybrid_hook)
        collected = gradients(model, launch.rank, steps=steps, micro_batches=1)
    assert len(model._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")) >= 40
    few = FEW_STEPS * len(list(model.parameters()))
    return [hashlib.sha256(_flat(part).numpy().tobytes()).hexdigest() for part in (collected[:few], collected)]


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_many_buckets_and_random_delays_give_the_same_bits_every_time() -> None:
    """200 steps of eight ranks end without a deadlock, and begin again as they began."""
    whole, again = (run_ranks(delayed_gradients, 8, steps) for steps in (200, FEW_STEPS))
    assert all(digests == whole[0] for digests in whole)
    assert [few for few, _ in again] == [few for few, _ in whole]


def exposed_twice(launch: Launch) -> tuple[float, float]:
    model = wrapped()
    with closing(HybridState(discover(launch), ReducePlan())) as state:
        model.register_comm_hook(state, hybrid_hook)
        gradients(model, launch.rank, steps=1)
        return state.take_exposed_s(), state.take_exposed_s()


def test_exposed_time_is_taken_once() -> None:
    for first, second in run_ranks(exposed_twice, 2):
        assert first > 0
        assert second == 0


def average_of_equals(launch: Launch, value: float) -> float:
    with closing(HybridState(discover(launch), ReducePlan(wire="fp16"))) as state:
        return state.submit(0, torch.full((8,), value), is_last=True).wait()[0].item()


@pytest.mark.parametrize("value", [30_000.0, 2.0**-23], ids=["sum beyond fp16", "quarter below fp16"])
def test_half_precision_wire_neither_overflows_nor_flushes(value: float) -> None:
    assert run_ranks(average_of_equals, 4, value) == [value] * 4


def heavy_tailed(rank: int) -> torch.Tensor:
    """Gradients under a loss scale: most below fp16's normal numbers, and some that all ranks have large alike."""
    rng = np.random.default_rng(rank)
    values = torch.from_numpy(1e-5 * rng.standard_t(df=1, size=100_000))
    values[:100] = 12_000 + 100 * rank
    return values.half()


def half_means(launch: Launch) -> torch.Tensor:
    with closing(HybridState(discover(launch, 2), ReducePlan(algorithm="hierarchical", wire="fp16"))) as state:
        return state.average(0, heavy_tailed(launch.rank).float())


def test_heavy_tailed_gradients_keep_their_small_and_their_large_ones() -> None:
    """Against float64; dividing all before the sum would flush more to zero, all after it would overflow."""
    own = [heavy_tailed(rank) for rank in range(8)]
    exact = torch.stack(own).double().mean(0)
    found = run_ranks(half_means, 8)[0].double()
    normal = exact.abs() > 2.0**-14
    assert ((found - exact).abs()[normal] / exact.abs()[normal]).quantile(0.99) < 2e-3
    divided_before, divided_after = ((sum(one / by for one in own) * by / 8).double() for by in (8, 1))
    assert divided_after.isinf().sum() == 100
    assert found.isfinite().all()
    flushed, flushed_before = (((one == 0) & (exact != 0)).sum() for one in (found, divided_before))
    assert flushed < 0.6 * flushed_before


def test_predivisor_is_the_power_of_two_at_the_square_root() -> None:
    assert [predivisor(world_size) for world_size in (1, 2, 3, 4, 8, 16, 1024, 2048)] == [1, 2, 2, 2, 4, 4, 32, 64]


def averages_of_half_buckets(launch: Launch) -> list[torch.Tensor]:
    topology = discover(launch)
    averages = []
    for wire in ("fp32", "fp16", "bf16"):
        for dtype in (torch.float16, torch.bfloat16):
            with closing(HybridState(topology, ReducePlan(wire=wire))) as state:
                averages.append(state.submit(0, torch.arange(8).to(dtype) * (launch.rank + 1), is_last=True).wait())
    return averages


def test_average_keeps_the_type_of_the_bucket() -> None:
    for averages in run_ranks(averages_of_half_buckets, 3):
        assert [average.dtype for average in averages] == [torch.float16, torch.bfloat16] * 3
        for average in averages:
            torch.testing.assert_close(average.float(), torch.arange(8) * 2.0, rtol=1e-2, atol=0)


def test_failure_reaches_the_future_and_all_later_ones() -> None:
    with closing(HybridState(discover(ALONE), ReducePlan())) as state:
        whole_numbers = state.submit(0, torch.ones(4, dtype=torch.int64), is_last=False)
        later = state.submit(0, torch.ones(4), is_last=True)
        with pytest.raises(RuntimeError, match="can't be cast"):
            whole_numbers.wait()
        with pytest.raises(RuntimeError, match="can't be cast"):
            later.wait()


def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    state = HybridState(discover(ALONE), ReducePlan(lanes=3))
    state.submit(0, torch.ones(2), is_last=True).wait()
    assert threading.active_count() == before + 3
    state.close()
    assert threading.active_count() == before


def mean_of_large_halves(launch: Launch) -> list[float]:
    """Half-precision gradients on an fp32 wire, whose sum half precision couldn't hold."""
    with closing(HybridState(discover(launch, 2), ReducePlan(wire="fp32"))) as state:
        return state.average(0, torch.full((4,), 30_000.0 + launch.rank * 32, dtype=torch.float16)).tolist()


def test_a_wire_wider_than_the_gradients_is_divided_before_they_are_half_again() -> None:
    assert run_ranks(mean_of_large_halves, 4) == [[30_048.0] * 4] * 4
