"""Static flat buffers and DDP's buckets give the same gradients, whatever the accumulation, use and order of layers."""

from contextlib import closing

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse
from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.launch import Launch
from fourminutes.comm.topology import discover
from fourminutes.plan import AlgorithmChoice, ReducePlan

HYBRID = ReducePlan(
    algorithm="hybrid",
    choices=(AlgorithmChoice(algorithm="hierarchical", up_to_kib=1), AlgorithmChoice(algorithm="ring")),
)


class Branches(nn.Module):
    """Layers in an order of use that is not that of their parameters, and one branch that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(16, 3)
        self.first = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Conv1d(1, 1, 3, padding=1))
        self.second = nn.Linear(16, 16)
        self.unused = nn.Linear(7, 300)

    def forward(self, x: Tensor, *, everything: bool) -> Tensor:
        middle = self.second(self.first(x[:, None])[:, 0])
        extra = self.unused.weight.sum() + self.unused.bias.sum() if everything else 0.0
        return self.last(middle) + extra


def threshold(module: nn.Module, limit_bytes: float) -> tuple[tuple[int, ...], ...]:
    return fuse([4 * weight.numel() for weight in module.parameters()], threshold_bytes=limit_bytes)


def gradients(parallel: nn.Module, rank: int, micro_batches: int) -> list[list[Tensor]]:
    """All gradients of three steps; in the second one layer takes no part."""
    generator = torch.Generator().manual_seed(rank)
    steps = []
    for everything in (True, False, True):
        parallel.zero_grad(set_to_none=True)
        with parallel.no_sync():
            for _ in range(micro_batches - 1):
                parallel(torch.randn(8, 16, generator=generator), everything=everything).square().sum().backward()
        parallel(torch.randn(8, 16, generator=generator), everything=everything).square().sum().backward()
        module = parallel.module
        steps.append([torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in module.parameters()])
    return steps


def both_front_ends(launch: Launch, settings: ReducePlan, limit_bytes: float, micro_batches: int) -> int:
    topology = discover(launch, 2)
    plain = DistributedDataParallel(Branches(), find_unused_parameters=True)
    expected = gradients(plain, launch.rank, micro_batches)
    compared = 0
    with closing(HybridState(topology, settings)) as hooked, closing(HybridState(topology, settings)) as fixed:
        ddp = DistributedDataParallel(Branches(), find_unused_parameters=True, bucket_cap_mb=limit_bytes / 2**20)
        ddp.register_comm_hook(hooked, hybrid_hook)
        module = Branches()
        flat = FlatParallel(module, fixed, threshold(module, limit_bytes))
        for parallel in (ddp, flat):
            for ours, theirs in zip(gradients(parallel, launch.rank, micro_batches), expected, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
                    compared += 1
        assert fixed.layout == [
            sum(list(module.parameters())[n].numel() for n in b) for b in threshold(module, limit_bytes)
        ]
    return compared


@pytest.mark.parametrize("limit_bytes", [1, 1200, 1e9], ids=["one each", "some", "all"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_are_ddps_own_with_accumulation_and_unused_layers(limit_bytes: float, micro_batches: int) -> None:
    compared = run_ranks(both_front_ends, 3, HYBRID, limit_bytes, micro_batches)
    assert compared == [2 * 3 * len(list(Branches().parameters()))] * 3


def one_state_two_models(launch: Launch) -> list[list[float]]:
    """The state of a hook, used for a second model after the first."""
    found = []
    with closing(HybridState(discover(launch), ReducePlan(wire="fp16"))) as state:
        for scale in (1.0, 3.0):
            model = DistributedDataParallel(nn.Linear(4, 2, bias=False))
            model.register_comm_hook(state, hybrid_hook)
            model(torch.full((1, 4), scale * (launch.rank + 1))).sum().backward()
            found.append(model.module.weight.grad.flatten().tolist())
    return found


def test_a_second_model_can_use_the_same_state() -> None:
    for found in run_ranks(one_state_two_models, 3):
        assert found == [[2.0] * 8, [6.0] * 8]


def kept_in_place(launch: Launch) -> tuple[bool, bool, bool]:
    """Whether gradients stay in the buffers, weights are rank 0's, and what lay elsewhere is taken over."""
    torch.manual_seed(launch.rank)
    module = nn.Linear(4, 2)
    with closing(HybridState(discover(launch), ReducePlan())) as state:
        flat = FlatParallel(module, state, ((1, 0),))
        addresses = set()
        for _ in range(3):
            flat.zero_grad(set_to_none=True)
            flat(torch.ones(1, 4)).sum().backward()
            addresses.add(module.weight.grad.data_ptr())
        module.weight.grad = torch.full_like(module.weight, 5.0)
        flat(torch.ones(1, 4)).sum().backward()
        added = torch.equal(module.weight.grad, torch.full((2, 4), 6.0))
    torch.manual_seed(0)
    return len(addresses) == 1, torch.equal(module.weight, nn.Linear(4, 2).weight), added


def test_gradients_stay_where_they_are_and_weights_are_the_first_ranks() -> None:
    assert run_ranks(kept_in_place, 2) == [(True, True, True)] * 2


def failing_backward(launch: Launch) -> str:
    """What a rank sees whose buckets cannot be averaged."""
    module = nn.Linear(4, 2)
    with closing(HybridState(discover(launch), ReducePlan())) as state:
        flat = FlatParallel(module, state, ((1, 0),))

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the wire is cut")

        state._summations = [broken]  # type: ignore[list-item]
        with pytest.raises(RuntimeError, match="the wire is cut") as failure:
            flat(torch.ones(1, 4)).sum().backward()
    return str(failure.value).splitlines()[0]


def test_a_failure_ends_the_backward_pass() -> None:
    assert all("the wire is cut" in line for line in run_ranks(failing_backward, 2))
