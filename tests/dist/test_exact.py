"""Averages of whole numbers are right to one unit in the last place: every arrangement, wire and front end."""

import itertools
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
from fourminutes.comm.topology import Topology, discover
from fourminutes.plan import AlgorithmChoice, ReducePlan

SHAPES = ((33, 5), (7,), (130,), (2, 3, 3, 3))
LIMIT_BYTES = 600  # two or more buckets, one of a single tensor
#: The hierarchy, in groups of its own, for the smaller buckets, in whatever format they travel.
CHOICES = (AlgorithmChoice(algorithm="hierarchical", group_ranks=2, up_to_kib=0.3), AlgorithmChoice(algorithm="ring"))
WIRES = ("fp32", "fp16", "bf16")
LARGEST = {"fp32": 10_000, "fp16": 2048, "bf16": 256}  # sums up to here are exact


class Given(nn.Module):
    """A module whose gradient is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in SHAPES)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        return torch.stack([(w * g).sum() for w, g in zip(self.weights, gradients, strict=True)]).sum()


def whole_numbers(rank: int, world_size: int, wire: str) -> list[Tensor]:
    """Some small, some as large as their sum allows."""
    generator = torch.Generator().manual_seed(rank)
    largest = LARGEST[wire] // world_size
    return [torch.randint(-largest, largest + 1, shape, generator=generator).float() for shape in SHAPES]


def averages(front_end: str, topology: Topology, settings: ReducePlan, own: list[Tensor]) -> list[Tensor]:
    module: nn.Module = Given()
    with closing(HybridState(topology, settings)) as state:
        if front_end == "flat":
            sizes = [4 * weight.numel() for weight in module.parameters()]
            parallel: nn.Module = FlatParallel(module, state, fuse(sizes, threshold_bytes=LIMIT_BYTES))
        else:
            parallel = DistributedDataParallel(module, bucket_cap_mb=LIMIT_BYTES / 2**20)
            parallel.register_comm_hook(state, hybrid_hook)
        parallel(own).backward()
    return [weight.grad.clone() for weight in module.parameters()]


def largest_error_ulp(launch: Launch, group_ranks: int) -> dict[str, float]:
    """By case, the largest error in units in the last place of fp32, in which gradients are kept."""
    topology = discover(launch, group_ranks)
    algorithms = ["ring", "hierarchical", "hybrid", *(["torus"] if topology.is_even else [])]
    errors = {}
    for algorithm, wire, front_end in itertools.product(algorithms, WIRES, ("ddp", "flat")):
        choices = CHOICES if algorithm == "hybrid" else ()
        settings = ReducePlan(algorithm=algorithm, wire=wire, choices=choices)
        everyones = [whole_numbers(rank, launch.world_size, wire) for rank in range(launch.world_size)]
        found = averages(front_end, topology, settings, everyones[launch.rank])
        means = [sum(tensors).double() / launch.world_size for tensors in zip(*everyones, strict=True)]
        errors[f"{algorithm} {wire} {front_end}"] = max(
            ((one.double() - mean).abs() / _ulp(mean)).max().item() for one, mean in zip(found, means, strict=True)
        )
    return errors


def _ulp(values: Tensor) -> Tensor:
    return 2.0 ** (torch.frexp(values).exponent - 24).double()


@pytest.mark.parametrize(("world_size", "group_ranks"), [(2, 1), (3, 2), (4, 2), (6, 4), (6, 3), (8, 2)], ids=str)
def test_averages_are_right_to_one_unit_in_the_last_place(world_size: int, group_ranks: int) -> None:
    cases = (4 if world_size % group_ranks == 0 else 3) * len(WIRES) * 2
    for errors in run_ranks(largest_error_ulp, world_size, group_ranks):
        assert len(errors) == cases
        assert {case: error for case, error in errors.items() if not error <= 1} == {}
