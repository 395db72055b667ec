"""Half precision over several ranks: the same gradients everywhere, whatever the precision and the wire."""

from contextlib import closing

import pytest
import torch
from processes import run_ranks
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.launch import Launch
from fourminutes.comm.topology import discover
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, ReducePlan
from fourminutes.train.loss_scale import LossScale
from fourminutes.train.precision import in_precision

CPU = torch.device("cpu")
BATCH, MICRO_BATCHES = 4, 2


def images_of(rank: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(BATCH * MICRO_BATCHES, 3, 16, 16, generator=torch.Generator().manual_seed(rank))
    return images, torch.arange(len(images)) % 5


def small_network(precision: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    model = build_model(ModelPlan(name="resnet_small", width=0.25, image_px=16), 5, seed=0)
    return model, in_precision(model, precision, CPU)


def backward(network: torch.nn.Module, scale: LossScale, images: Tensor, labels: Tensor) -> None:
    scale.scaled(cross_entropy(network(images), labels) / MICRO_BATCHES).backward()


def reduced_gradients(launch: Launch, precision: str, wire: str, scale_value: float) -> tuple[bool, list[Tensor]]:
    """Whether the averaged gradients are finite, and all of them; micro-batches as in the training loop."""
    model, network = small_network(precision)
    parallel, scale = DistributedDataParallel(network, gradient_as_bucket_view=True), LossScale(scale_value)
    parallel.broadcast_buffers = False
    images, labels = images_of(launch.rank)
    with closing(HybridState(discover(launch), ReducePlan(wire=wire))) as state:
        parallel.register_comm_hook(state, hybrid_hook)
        with parallel.no_sync():
            backward(parallel, scale, images[:BATCH], labels[:BATCH])
        backward(parallel, scale, images[BATCH:], labels[BATCH:])
    finite = scale.unscale_(parameter.grad for parameter in model.parameters())
    return finite, [parameter.grad for parameter in model.parameters()]


def mean_gradients(precision: str, world_size: int) -> list[Tensor]:
    """The mean of the ranks' own gradients, in float64 and without a wire."""
    sums: list[Tensor] = []
    for rank in range(world_size):
        model, network = small_network(precision)
        images, labels = images_of(rank)
        for start in (0, BATCH):
            backward(network, LossScale(1024), images[start : start + BATCH], labels[start : start + BATCH])
        own = [parameter.grad.double() / 1024 / world_size for parameter in model.parameters()]
        sums = [total + each for total, each in zip(sums, own, strict=True)] if sums else own
    return sums


@pytest.mark.parametrize(("precision", "wire"), [("half", "fp16"), ("half-lars", "fp16"), ("amp", "fp32")])
def test_gradients_are_the_mean_and_the_same_bits_on_both_ranks(precision: str, wire: str) -> None:
    (finite, first), (_, second) = run_ranks(reduced_gradients, 2, precision, wire, 1024.0)
    assert finite
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert {each.dtype for each in first} == {torch.float16 if precision == "half-lars" else torch.float32}
    for ours, expected in zip(first, mean_gradients(precision, 2), strict=True):
        largest = expected.abs().max().item()
        torch.testing.assert_close(ours.double(), expected, rtol=2e-3, atol=2e-3 * largest + 2.0**-24)


def one_rank_overflows(launch: Launch) -> bool:
    """The scale is too large for one rank's gradients alone."""
    return reduced_gradients(launch, "half", "fp16", 1024.0 if launch.rank else 2.0**24)[0]


def test_all_ranks_see_an_overflow_of_one() -> None:
    assert run_ranks(one_rank_overflows, 2) == [False, False]
