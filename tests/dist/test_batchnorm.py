"""Batch norm across ranks: shared statistics are those of the joined batch; measured ones are those of all batches."""

from contextlib import closing
from typing import NamedTuple

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.launch import ALONE, Launch
from fourminutes.comm.topology import discover
from fourminutes.models import build_model
from fourminutes.optim import parameter_groups
from fourminutes.plan import ModelPlan, ReducePlan
from fourminutes.train.batchnorm import average_running_statistics, recalibrate, share_statistics
from fourminutes.train.precision import in_precision
from fourminutes.train.ranks import Ranks

IMAGES, CHANNELS, PX = 6, 5, 4
NORMS = 9  # of resnet_small


class Pass(NamedTuple):
    """What one forward and backward pass leaves."""

    output: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    running_mean: Tensor
    running_var: Tensor
    batches: Tensor


def norm_layer(momentum: float | None) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=momentum)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(CHANNELS, generator=generator))
    return norm


def share_of(rank: int, count: int) -> tuple[Tensor, Tensor]:
    """A rank's x and dy: far from zero, where E[x²] − E[x]² would lose its digits, and each rank elsewhere."""
    generator = torch.Generator().manual_seed(rank)
    x, dy = torch.randn(2, count, CHANNELS, PX, PX, generator=generator)
    return x + 100 + rank, dy


def two_passes(norm: nn.Module, x: Tensor, dy: Tensor) -> Pass:
    x = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    norm(x)
    y = norm(x)
    y.backward(dy)
    return Pass(y.detach(), x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers())


def assert_near(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Whether they differ by no more than `tolerance` times the largest expected number."""
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


def counts_of(world_size: int, is_even: bool) -> list[int]:
    return [IMAGES if is_even else IMAGES - rank for rank in range(world_size)]


def shared_pass(launch: Launch, span: int, is_even: bool, momentum: float | None) -> Pass:
    norm = share_statistics(norm_layer(momentum), span, launch.rank, launch.world_size)
    return two_passes(norm, *share_of(launch.rank, counts_of(launch.world_size, is_even)[launch.rank]))


@pytest.mark.parametrize(("span", "is_even", "momentum"), [(2, True, 0.1), (4, True, None), (4, False, 0.1)])
def test_shared_norm_is_one_norm_over_the_joined_batch_in_fp64(
    span: int, is_even: bool, momentum: float | None
) -> None:
    world_size = 4
    passes = run_ranks(shared_pass, world_size, span, is_even, momentum)
    counts = counts_of(world_size, is_even)
    for first in range(0, world_size, span):
        together = range(first, first + span)
        shares = [share_of(rank, counts[rank]) for rank in together]
        x, dy = (torch.cat(parts).double() for parts in zip(*shares, strict=True))
        expected, ours = two_passes(norm_layer(momentum).double(), x, dy), [passes[rank] for rank in together]
        assert_near(torch.cat([each.output for each in ours]), expected.output, 1e-5)
        assert_near(torch.cat([each.dx for each in ours]), expected.dx, 1e-5)
        assert_near(sum(each.dweight for each in ours), expected.dweight, 1e-5)
        assert_near(sum(each.dbias for each in ours), expected.dbias, 1e-5)
        for each in ours:
            assert_near(each.running_mean, expected.running_mean, 1e-6)
            assert_near(each.running_var, expected.running_var, 1e-5)
            assert each.batches == expected.batches == 2


def small_model(seed: int = 0) -> nn.Module:
    return build_model(ModelPlan(name="resnet_small", width=0.25, image_px=16), 5, seed=seed)


def kinship(launch: Launch) -> int:
    """A model with shared norms is in every other respect the model."""
    model, plain = small_model(), small_model()
    state, parameters = model.state_dict(), dict(model.named_parameters())
    assert share_statistics(model, 1, launch.rank, launch.world_size) is model
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == NORMS
    shared = share_statistics(model, launch.world_size, launch.rank, launch.world_size)
    norms = [module for module in shared.modules() if isinstance(module, _BatchNorm)]
    assert not any(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    assert len(norms) == NORMS
    assert {name: id(parameter) for name, parameter in shared.named_parameters()} == {
        name: id(parameter) for name, parameter in parameters.items()
    }
    assert list(shared.state_dict()) == list(state)
    ours, theirs = (parameter_groups(each, weight_decay=1.0) for each in (shared, plain))
    assert [len(group["params"]) for group in ours] == [len(group["params"]) for group in theirs]
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(launch.rank))
    shared.eval()  # and now without a word to the others
    torch.testing.assert_close(shared(images), plain.eval()(images), rtol=0, atol=0)
    shared.load_state_dict(small_model(seed=1).state_dict())
    return len(norms)


def test_shared_norms_keep_names_parameters_groups_and_evaluation() -> None:
    assert run_ranks(kinship, 2) == [NORMS, NORMS]


def trained_weights(launch: Launch) -> Tensor:
    """The weights after 20 steps of many buckets, whose sums are under way while norms exchange theirs."""
    model = share_statistics(small_model(), 2, launch.rank, launch.world_size)
    network = DistributedDataParallel(in_precision(model, "half", torch.device("cpu")), bucket_cap_mb=0.01)
    network.broadcast_buffers = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(launch.rank)
    with closing(HybridState(discover(launch), ReducePlan(wire="fp16"))) as state:
        network.register_comm_hook(state, hybrid_hook)
        for _ in range(20):
            optimizer.zero_grad()
            with network.no_sync():
                network(torch.randn(4, 3, 16, 16, generator=generator)).square().mean().backward()
            network(torch.randn(4, 3, 16, 16, generator=generator)).square().mean().backward()
            optimizer.step()
    assert len(network._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")) > 1
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_norms_and_gradients_communicate_side_by_side() -> None:
    start = torch.cat([parameter.detach().flatten() for parameter in small_model().parameters()])
    first, *others = run_ranks(trained_weights, 4)
    assert first.isfinite().all()
    assert not torch.equal(first, start)
    assert all(torch.equal(first, other) for other in others)


# --- running statistics ---------------------------------------------------------------------------------------------


def averaged_buffers(launch: Launch) -> tuple[Tensor, Tensor]:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(launch.rank)
    norm.running_var.fill_(launch.rank + 1)
    average_running_statistics(nn.Sequential(norm), Ranks.of(launch, timeout_s=60))
    return norm.running_mean, norm.running_var


def test_running_statistics_are_averaged_over_all_ranks() -> None:
    for mean, variance in run_ranks(averaged_buffers, 3):
        assert mean.tolist() == [1, 1]
        assert variance.tolist() == [2, 2]


def stale_model() -> nn.Module:
    """Two norms, the second of which sees what the first makes of a batch, and a dropout that has to be idle."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4))
    for norm in (layers[0], layers[3]):
        norm.running_mean.fill_(torch.nan)
        norm.num_batches_tracked.fill_(7)
    layers[3].eval()
    return layers


def batches_of(rank: int, count: int = 3) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, 6, 6, generator=torch.Generator().manual_seed(rank)) * (2 + rank) + rank)


def measured_directly(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Means over the batches of each norm's batch mean and unbiased batch variance."""
    first, convolution, _, _ = model
    dims = (0, 2, 3)
    inner = [
        convolution(nn.functional.batch_norm(x, None, None, first.weight, first.bias, training=True)) for x in batches
    ]
    return [
        torch.stack([statistic(x) for x in maps]).mean(0).detach()
        for maps in (batches, inner)
        for statistic in (lambda x: x.mean(dims), lambda x: x.var(dims))
    ]


def recalibrated(ranks: Ranks) -> list[Tensor]:
    model = stale_model()
    before = [parameter.clone() for parameter in model.parameters()]
    network = nn.Sequential(model)
    recalibrate(network, model, iter(batches_of(ranks.rank)), ranks)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in network.modules()] == [True] * 5 + [False]
    assert [model[0].momentum, model[3].momentum] == [0.1, 0.1]
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def recalibrated_rank(launch: Launch) -> list[Tensor]:
    return recalibrated(Ranks.of(launch, timeout_s=60))


def test_recalibration_measures_the_mean_over_batches() -> None:
    measured = recalibrated(Ranks(ALONE.rank, 1, None))
    torch.testing.assert_close(measured, measured_directly(stale_model(), batches_of(0)), rtol=1e-5, atol=1e-6)


def test_recalibration_measures_the_mean_over_batches_of_all_ranks() -> None:
    first, second = run_ranks(recalibrated_rank, 2)
    direct = [measured_directly(stale_model(), batches_of(rank)) for rank in range(2)]
    expected = [(one + other) / 2 for one, other in zip(*direct, strict=True)]
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def recalibrated_over_span(launch: Launch) -> list[Tensor]:
    norm = nn.BatchNorm2d(3)
    model = share_statistics(nn.Sequential(norm), launch.world_size, launch.rank, launch.world_size)
    recalibrate(model, model, batches_of(launch.rank), Ranks.of(launch, timeout_s=60))
    return [norm.running_mean, norm.running_var]


def test_recalibration_of_shared_norms_measures_joined_batches() -> None:
    joined = [torch.cat(batches) for batches in zip(batches_of(0), batches_of(1), strict=True)]
    expected = [torch.stack([x.mean((0, 2, 3)) for x in joined]), torch.stack([x.var((0, 2, 3)) for x in joined])]
    for measured in run_ranks(recalibrated_over_span, 2):
        torch.testing.assert_close(measured, [each.mean(0) for each in expected], rtol=1e-5, atol=1e-6)
