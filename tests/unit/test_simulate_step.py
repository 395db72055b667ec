"""One step over many ranks, by hand: what links cost, how buckets travel, who is waited for."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourminutes.comm.fit import cost_terms
from fourminutes.comm.tuner import Readiness
from fourminutes.errors import UserError
from fourminutes.plan import AlgorithmChoice, ReducePlan
from fourminutes.scale.events import Travel, busy_s, communicate
from fourminutes.scale.network import Link, Network, Part, total_s
from fourminutes.scale.step import Compute, simulate_step, slowest_factors

INNER, OUTER = Link(1e-6, 10e9), Link(10e-6, 5e9)
ALIKE = Network(OUTER, OUTER, node_ranks=1)
NODES = Network(INNER, OUTER, node_ranks=8)
TREES = Network(INNER, OUTER, node_ranks=8, has_trees=True)
MIB = 2**20


# --- what an all-reduce takes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ring", "hierarchical", "torus"])
@pytest.mark.parametrize(("processes", "group"), [(1024, 16), (64, 8), (8, 4), (2, 2)])
def test_alike_links_cost_the_published_steps_and_bytes(algorithm: str, processes: int, group: int) -> None:
    steps, volume = cost_terms(algorithm, processes, group)
    parts = ALIKE.parts(algorithm, 1e6, processes, group)
    assert sum(part.latency_s for part in parts) == pytest.approx(steps * 10e-6)
    assert sum(part.wire_s for part in parts) == pytest.approx(volume * 1e6 / 5e9)


@pytest.mark.parametrize("algorithm", ["ring", "hierarchical", "torus"])
def test_one_process_sends_nothing(algorithm: str) -> None:
    assert NODES.parts(algorithm, 1e9, 1, 4) == ()


def test_a_ring_inside_a_node_keeps_to_its_links() -> None:
    (part,) = NODES.parts("ring", 8e6, 8, 8)
    assert part.level == "inner"
    assert (part.latency_s, part.wire_s) == pytest.approx((14e-6, 2 * 7 / 8 * 8e6 / 10e9))


def test_a_ring_over_nodes_is_as_slow_as_its_slowest_hop() -> None:
    (part,) = NODES.parts("ring", 16e6, 16, 16)
    assert part.level == "outer"
    assert (part.latency_s, part.wire_s) == pytest.approx((30 * 10e-6, 2 * 15 / 16 * 16e6 / 5e9))


def test_a_hierarchy_by_node_sends_over_the_slow_links_once() -> None:
    reduce, across, broadcast = NODES.parts("hierarchical", 8e6, 64, 8)
    assert [part.level for part in (reduce, across, broadcast)] == ["inner", "outer", "inner"]
    assert reduce.latency_s == broadcast.latency_s == pytest.approx(14e-6)
    assert (across.latency_s, across.wire_s) == pytest.approx((14 * 10e-6, 2 * 7 / 8 * 8e6 / 5e9))


def test_groups_larger_than_a_node_reduce_over_the_slow_links_too() -> None:
    assert [part.level for part in NODES.parts("hierarchical", 1e6, 64, 16)] == ["outer", "outer", "outer"]


def test_the_rings_of_a_torus_share_the_nodes_link() -> None:
    _, across, _ = NODES.parts("torus", 8e6, 64, 8)
    # Eight rings at once, each of an eighth of the message.
    assert across.wire_s == pytest.approx(2 * 7 / 8 * 8e6 / 5e9)
    assert across.latency_s == pytest.approx(14 * 10e-6)


def test_one_group_alone_has_nobody_to_meet_across() -> None:
    assert [part.name for part in NODES.parts("hierarchical", 1e6, 8, 8)] == ["reduce, within", "broadcast, within"]


def test_trees_win_for_small_messages_and_never_lose() -> None:
    small, large = (TREES.parts("ring", size, 1024, 1024) for size in (1e3, 1e9))
    # Up and down 7 levels of 128 nodes, and a chain of 8 ranks in each.
    assert total_s(small) == pytest.approx(2 * (7 * 1e-6 + 7 * 10e-6) + 2 * 1e3 / 5e9)
    assert total_s(small) < total_s(NODES.parts("ring", 1e3, 1024, 1024)) / 50
    assert total_s(large) <= total_s(NODES.parts("ring", 1e9, 1024, 1024))


def test_beside_trees_the_hierarchy_gains_little() -> None:
    def gain(network: Network) -> float:
        flat, hierarchy = (network.parts(name, 1e4, 1024, 16) for name in ("ring", "hierarchical"))
        return total_s(flat) / total_s(hierarchy)

    assert gain(NODES) > 5
    assert gain(TREES) < 1


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UserError, match="no cost equation for 'butterfly'"):
        NODES.parts("butterfly", 1e6, 64, 8)


# --- how buckets travel ---------------------------------------------------------------------------------------------


def way(latency_s: float, wire_s: float, level: str = "outer") -> tuple[Part, ...]:
    return (Part("x", level, latency_s, wire_s),)  # type: ignore[arg-type]


def ends(ready_s: list[float], ways: list[tuple[Part, ...]], lanes: int = 1) -> list[float]:
    return [travel.end_s for travel in communicate(ready_s, ways, lanes)]


def test_one_lane_takes_buckets_one_after_another() -> None:
    assert ends([0, 1, 5], [way(1, 2), way(0, 2), way(1, 0)]) == pytest.approx([3, 5, 6])


def test_a_bucket_waits_for_those_before_it_even_if_it_was_ready_first() -> None:
    assert ends([2, 0], [way(0, 1), way(0, 1)]) == pytest.approx([3, 4])


def test_two_lanes_share_a_link_equally() -> None:
    # Both move until the short one is done, each at half the rate; then the long one alone.
    assert ends([0, 0], [way(0, 1), way(0, 3)], lanes=2) == pytest.approx([2, 4])


def test_latencies_are_waited_for_beside_others_bytes() -> None:
    assert ends([0, 0], [way(1, 1), way(2, 1)], lanes=2) == pytest.approx([2, 3])


def test_different_levels_share_nothing() -> None:
    assert ends([0, 0], [way(0, 2, "inner"), way(0, 3)], lanes=2) == pytest.approx([2, 3])


def test_stages_of_a_bucket_follow_one_another() -> None:
    assert ends([1], [(*way(1, 1, "inner"), *way(1, 2), *way(0, 1, "inner"))]) == pytest.approx([7])


def test_a_bucket_without_stages_is_done_at_once() -> None:
    assert communicate([0.5, 0.7], [(), ()]) == (Travel(0.5, 0.5, 0.5), Travel(0.7, 0.7, 0.7))


def test_time_under_way_counts_once() -> None:
    assert busy_s([Travel(0, 0, 2), Travel(0, 1, 3), Travel(0, 5, 6)]) == pytest.approx(4)


BUCKETS = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=12)


@given(BUCKETS)
def test_a_second_lane_that_stays_empty_changes_nothing(buckets: list[tuple[float, float, float]]) -> None:
    ready_s = list(itertools.accumulate(ready for ready, _, _ in buckets))
    ways = [way(latency, wire) for _, latency, wire in buckets]
    # Every second bucket is nothing, and ready when the one before it is: all others queue in one lane.
    doubled = communicate([ready for ready in ready_s for _ in range(2)], [one for own in ways for one in (own, ())], 2)
    alone = communicate(ready_s, ways, 1)
    assert [travel.end_s for travel in doubled[::2]] == pytest.approx([travel.end_s for travel in alone], abs=1e-6)


@given(BUCKETS, st.integers(1, 4))
def test_links_move_no_more_than_they_can_and_nothing_waits_for_ever(
    buckets: list[tuple[float, float, float]], lanes: int
) -> None:
    ready_s = list(itertools.accumulate(ready for ready, _, _ in buckets))
    ways = [way(latency, wire) for _, latency, wire in buckets]
    travels = communicate(ready_s, ways, lanes)
    last_s = max(travel.end_s for travel in travels)
    assert last_s >= sum(wire for _, _, wire in buckets) - 1e-6
    assert last_s <= ready_s[-1] + sum(latency + wire for _, latency, wire in buckets) + 1e-6
    for travel, parts in zip(travels, ways, strict=True):
        assert travel.begin_s >= travel.ready_s - 1e-9
        assert travel.end_s - travel.begin_s >= sum(part.total_s for part in parts) - 1e-6


# --- the step -------------------------------------------------------------------------------------------------------


def four_tensors(spread: float = 0.0) -> Compute:
    """Four gradients of 1 MiB in fp32, ready after 0.1, 0.2, 0.3 and 0.4 s, the model's last one first."""
    return Compute(0.05, 0.2, Readiness((MIB,) * 4, (0.4, 0.3, 0.2, 0.1)), 0.01, spread)


class Constant:
    """Every message takes as long as it is told by its algorithm."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, float, int, int]] = []

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        self.asked.append((algorithm, message_bytes, processes, group_ranks))
        return way(self.seconds[algorithm], 0)


def test_fast_messages_expose_the_last_bucket_only() -> None:
    step = simulate_step(four_tensors(), ReducePlan(bucket_mib=1, lanes=1), Constant(ring=0.05), 8)
    assert step.buckets == 4
    assert step.exposed_s == pytest.approx(0.05)
    assert step.total_s == pytest.approx(0.05 + 0.2 + 0.4 + 0.05 + 0.01)
    assert step.low_s == step.high_s == step.total_s
    assert step.communication_s == pytest.approx(0.2)
    assert step.efficiency_percent == pytest.approx(100 * 0.66 / 0.71)
    assert step.idle_percent == pytest.approx(100 * 0.05 / 0.71)


def test_slow_messages_queue() -> None:
    step = simulate_step(four_tensors(), ReducePlan(bucket_mib=1, lanes=1), Constant(ring=0.3), 8)
    assert step.exposed_s == pytest.approx(0.1 + 4 * 0.3 - 0.4)


def test_what_is_fused_waits_for_its_last_tensor() -> None:
    step = simulate_step(four_tensors(), ReducePlan(bucket_mib=2, lanes=1), Constant(ring=0.3), 8)
    # Buckets are ready after 0.2 and 0.4 s.
    assert (step.buckets, step.exposed_s) == (2, pytest.approx(0.2 + 0.6 - 0.4))


def test_segments_fuse_as_the_paper_does() -> None:
    reduce = ReducePlan(front_end="flat", segments=(1,), lanes=1)
    costs = Constant(ring=0.1)
    simulate_step(four_tensors(), reduce, costs, 8)
    assert [size for _, size, _, _ in costs.asked] == [3 * MIB, MIB]


def test_half_a_wire_has_half_the_bytes() -> None:
    costs = Constant(ring=0.1)
    simulate_step(four_tensors(), ReducePlan(bucket_mib=25, wire="fp16"), costs, 8)
    assert costs.asked == [("ring", 2 * MIB, 8, 1)]


def test_hybrid_chooses_by_the_size_on_the_wire() -> None:
    choices = (
        AlgorithmChoice(algorithm="hierarchical", up_to_kib=1024, group_ranks=4),
        AlgorithmChoice(algorithm="ring"),
    )
    compute = Compute(0, 0, Readiness((MIB, 8 * MIB), (0.2, 0.1)), 0)
    costs = Constant(ring=0.1, hierarchical=0.01)
    simulate_step(compute, ReducePlan(algorithm="hybrid", choices=choices, bucket_mib=0.1), costs, 16, group_ranks=2)
    assert costs.asked == [("ring", 8 * MIB, 16, 2), ("hierarchical", MIB, 16, 4)]


def test_the_slowest_of_many_is_later() -> None:
    one, few, many = (slowest_factors(processes, 0.05) for processes in (1, 8, 4096))
    assert one == (1.0,)
    assert 1 < math.fsum(few) / len(few) < math.fsum(many) / len(many)
    # The expected greatest of 8 normal values lies 1.4236 deviations above the mean (Harter 1961).
    assert math.fsum(few) / len(few) == pytest.approx(1 + 0.05 * 1.4236, rel=2e-3)


def test_a_step_waits_for_the_slowest_and_says_how_surely() -> None:
    step = simulate_step(four_tensors(spread=0.05), ReducePlan(bucket_mib=1, lanes=1), Constant(ring=0.05), 64)
    assert step.low_s < step.total_s < step.high_s
    assert step.total_s == pytest.approx(step.alone_s + step.exposed_s + step.late_s, rel=1e-3)


def test_one_process_is_efficient() -> None:
    step = simulate_step(four_tensors(spread=0.05), ReducePlan(), NODES, 1)
    assert step.total_s == step.alone_s == pytest.approx(0.66)
    assert step.exposed_s == step.late_s == 0
    assert step.efficiency_percent == 100
