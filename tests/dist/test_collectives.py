"""The three arrangements of the all-reduce give the exact sum, over any layout of hosts and groups."""

import itertools

import pytest
import torch
from processes import run_ranks

from fourminutes.comm.collectives import ALGORITHMS, Stage, hybrid, run, torus
from fourminutes.comm.launch import Launch
from fourminutes.comm.topology import discover, group_by_host, group_consecutive, placement
from fourminutes.errors import UserError
from fourminutes.plan import AlgorithmChoice
from fourminutes.train.ranks import Ranks

# 24 elements fill the torus's parts evenly, 23 and 1 do not.
LENGTHS = (24, 23, 1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def integers(rank: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Small enough that sums over eight ranks are exact in every type: |sum| <= 256."""
    return ((torch.arange(length) * 7 + rank * 13) % 65 - 32).to(dtype)


def sums_are_exact(launch: Launch, group_ranks: int | None) -> int:
    topology = discover(launch, group_ranks)
    checked = 0
    for (name, algorithm), length, dtype in itertools.product(ALGORITHMS.items(), LENGTHS, DTYPES):
        if name == "torus" and not topology.is_even:
            continue
        tensor = integers(launch.rank, length, dtype)
        run(algorithm, tensor, topology)
        expected = sum(integers(rank, length, torch.float64) for rank in range(launch.world_size))
        assert torch.equal(tensor.double(), expected), (name, length, dtype)
        checked += 1
    return checked


@pytest.mark.parametrize(
    ("world_size", "group_ranks"),
    [(2, 1), (2, None), (3, 2), (4, 2), (4, 3), (4, 1), (4, 4), (6, 3), (6, 4), (8, 2), (8, 3), (8, 4)],
    ids=str,
)
def test_every_rank_holds_the_exact_sum(world_size: int, group_ranks: int | None) -> None:
    is_even = group_ranks is None or world_size % group_ranks == 0
    expected = (3 if is_even else 2) * len(LENGTHS) * len(DTYPES)
    assert run_ranks(sums_are_exact, world_size, group_ranks) == [expected] * world_size


CHOICES = (
    AlgorithmChoice(algorithm="hierarchical", up_to_kib=1),
    AlgorithmChoice(algorithm="torus", up_to_kib=2),
    AlgorithmChoice(algorithm="ring"),
)


def stages_by_size(launch: Launch) -> list[list[Stage]]:
    """The stages of a hybrid over two pairs: at a limit, just beyond it, and beyond the last one."""
    topology = discover(launch, 2)
    return [list(hybrid(CHOICES, topology)(torch.zeros(elements))) for elements in (256, 257, 512, 513)]


def test_a_hybrid_takes_the_arrangement_of_the_message_s_size_and_tells_what_each_stage_is_handed() -> None:
    found = run_ranks(stages_by_size, 4)
    hierarchy = [
        Stage("reduce", "within", 1024),
        Stage("all_reduce", "across", 1024),
        Stage("broadcast", "within", 1024),
    ]
    assert [stages[0] for stages in found] == [hierarchy, hierarchy[::2]] * 2  # ranks 0 and 2 are the masters
    for stages in found:
        for made, padded in zip(stages[1:3], (258, 512), strict=True):
            assert made == [
                Stage("reduce_scatter", "within", 4 * padded),
                Stage("all_reduce", "across", 2 * padded),
                Stage("all_gather", "within", 2 * padded),
            ]
        assert stages[3] == [Stage("all_reduce", "world", 4 * 513)]


def sum_of_matrices(launch: Launch) -> dict[str, torch.Tensor]:
    topology = discover(launch, 2)
    sums = {}
    for name, algorithm in ALGORITHMS.items():
        sums[name] = torch.full((3, 5), float(launch.rank + 1))
        run(algorithm, sums[name], topology)
    return sums


def test_shape_is_kept() -> None:
    for sums in run_ranks(sum_of_matrices, 4):
        for name, total in sums.items():
            assert torch.equal(total, torch.full((3, 5), 10.0)), name


def refusal_of_torus(launch: Launch) -> str:
    topology = discover(launch, 2)
    with pytest.raises(UserError) as refusal:
        run(torus, torch.ones(4), topology)
    return str(refusal.value)


def test_torus_refuses_uneven_groups_in_one_line() -> None:
    for line in run_ranks(refusal_of_torus, 3):
        assert "groups of 2, 1 ranks" in line
        assert "\n" not in line


def own_place(launch: Launch) -> tuple[object, ...]:
    topology = discover(launch, 2)
    return topology.groups, topology.group, topology.master, topology.masters, placement(launch, topology)


def test_all_ranks_see_the_same_groups() -> None:
    places = run_ranks(own_place, 3)
    assert [place[0] for place in places] == [((0, 1), (2,))] * 3
    assert [place[1] for place in places] == [(0, 1), (0, 1), (2,)]
    assert [place[2] for place in places] == [0, 0, 2]
    assert {place[3] for place in places} == {(0, 2)}
    assert places[0][4] == places[2][4]
    assert (places[0][4].launcher, places[0][4].device, places[0][4].backend) == ("torchrun", "cpu", "gloo")
    assert len(places[0][4].hosts) == 3


def timeouts_s(launch: Launch) -> list[float]:
    topology = discover(launch, 2, timeout_s=47)
    assert topology.within is not None
    groups = [topology.within, topology.across, Ranks.of(launch, timeout_s=48).group]
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def test_groups_wait_as_long_as_they_are_told_to() -> None:
    assert run_ranks(timeouts_s, 4) == [[47, 47, 48]] * 4


def test_one_process_alone_needs_no_process_group() -> None:
    topology = discover(Launch("alone", 0, 1, 0, 1, None))
    tensor = torch.arange(5.0)
    for algorithm in ALGORITHMS.values():
        run(algorithm, tensor, topology)
    assert torch.equal(tensor, torch.arange(5.0))
    assert topology.groups == ((0,),)


def test_ranks_dealt_to_hosts_in_turn_are_grouped_by_host() -> None:
    assert group_by_host(["b", "a", "b", "a", "c"]) == ((0, 2), (1, 3), (4,))


def test_last_group_takes_the_remainder() -> None:
    assert group_consecutive(7, 3) == ((0, 1, 2), (3, 4, 5), (6,))
    assert group_consecutive(2, 8) == ((0, 1),)
