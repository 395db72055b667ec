"""What the tuner chooses from given times: arrangements by size, and a bucket size for a model."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourminutes.comm.tuner import (
    Curve,
    Readiness,
    best_fusion,
    choose,
    curves_of,
    fusions,
    predicted_s,
)
from fourminutes.plan import AlgorithmChoice
from fourminutes.record import CollectiveTiming, Fusion

SIZES = tuple(1024 * 4**power for power in range(9))


def affine(alpha_s: float, beta_s_byte: float, sizes: tuple[int, ...] = SIZES) -> Curve:
    return Curve(sizes, tuple(alpha_s + beta_s_byte * size for size in sizes))


RING = affine(16e-3, 14e-9)  # as over eight hosts at 1 Gbit/s
HIERARCHY = affine(9e-3, 33e-9)
TORUS = affine(14e-3, 25e-9)
CURVES = {("ring", 8): RING, ("hierarchical", 2): HIERARCHY, ("torus", 2): TORUS}


def test_a_curve_is_exact_between_and_beyond_sizes_where_time_is_affine() -> None:
    for size in (1024, 3000, 2**20, 2**26, 2**28):
        assert RING.at(size) == pytest.approx(16e-3 + 14e-9 * size)
    assert RING.at(8) == RING.seconds[0]
    assert Curve((1024,), (2.0,)).at(2048) == 4.0


def test_the_choice_changes_where_the_curves_cross() -> None:
    choices = choose(CURVES)
    assert [(choice.algorithm, choice.group_ranks) for choice in choices] == [("hierarchical", 2), ("ring", None)]
    crossing_kib = 7e-3 / 19e-9 / 1024
    assert choices[0].up_to_kib == pytest.approx(crossing_kib, rel=1e-3)
    assert choices[1].up_to_kib is None


@given(scatter=st.lists(st.floats(0.975, 1.025), min_size=len(SIZES), max_size=len(SIZES)))
def test_scatter_below_what_a_change_has_to_gain_changes_nothing(scatter: list[float]) -> None:
    one = affine(9e-3, 33e-9)
    other = Curve(SIZES, tuple(time * factor for time, factor in zip(one.seconds, scatter, strict=True)))
    # Nine sizes within 2.5 %: what a change back and forth could gain is less than its price, a single one may pay.
    assert len(choose({("hierarchical", 2): one, ("hierarchical", 4): other})) <= 3


def test_no_sequence_of_arrangements_is_cheaper() -> None:
    sizes = SIZES[:5]
    curves = {
        ("ring", 8): Curve(sizes, (3.0, 1.0, 3.0, 1.0, 1.0)),
        ("hierarchical", 2): Curve(sizes, (1.0, 3.0, 1.0, 1.04, 2.0)),
    }
    chosen = [next(choice for choice in choose(curves) if choice.holds(size)).algorithm for size in sizes]
    product = itertools.product(curves, repeat=len(sizes))

    def cost(sequence: tuple[tuple[str, int], ...]) -> float:
        total = 1.0
        for way, size in zip(sequence, sizes, strict=True):
            total *= curves[way].at(size)
        changes = sum(one != other for one, other in itertools.pairwise(sequence))
        return total * 2.718281828 ** (0.05 * changes)

    assert [way[0] for way in min(product, key=cost)] == chosen


def test_an_arrangement_measured_no_further_goes_on_with_its_last_slope() -> None:
    short = affine(9e-3, 33e-9, SIZES[:4])
    choices = choose({("ring", 8): RING, ("hierarchical", 2): short})
    assert [choice.algorithm for choice in choices] == ["hierarchical", "ring"]


def test_a_message_is_predicted_by_its_own_arrangement() -> None:
    choices = choose(CURVES)
    assert predicted_s(CURVES, choices, 2048) == HIERARCHY.at(2048)
    assert predicted_s(CURVES, choices, 5_000_000) == RING.at(5_000_000)


def test_groups_of_several_sizes_are_told_apart() -> None:
    curves = {("hierarchical", 2): affine(1e-3, 20e-9), ("hierarchical", 4): affine(2e-3, 10e-9)}
    choices = choose(curves)
    assert [choice.group_ranks for choice in choices] == [2, 4]
    assert predicted_s(curves, choices, 2**22) == curves["hierarchical", 4].at(2**22)


def test_the_groups_that_a_run_has_anyway_need_no_name() -> None:
    curves = {("hierarchical", 3): affine(1e-3, 20e-9), ("hierarchical", 2): affine(2e-3, 10e-9)}
    assert [choice.group_ranks for choice in choose(curves, own_group_ranks=3)] == [None, 2]


def test_curves_come_from_medians_at_each_size() -> None:
    timings = [
        CollectiveTiming(
            algorithm="ring", group_ranks=4, message_bytes=size, repeats=3,
            median_s=time, lower_quartile_s=time, upper_quartile_s=time, bus_gbyte_s=1,
        )
        for size, time in ((4096, 2.0), (1024, 1.0))
    ]  # fmt: skip
    assert curves_of(timings) == {("ring", 4): Curve((1024, 4096), (1.0, 2.0))}


MEBIBYTE = 2**20
ANY_RING = (AlgorithmChoice(algorithm="ring"),)


def candidates(readiness: Readiness, alpha_s: float, wire: str = "fp32") -> tuple[Fusion, ...]:
    curve = affine(alpha_s, 1e-3 / MEBIBYTE)  # a millisecond a mebibyte
    return fusions(readiness, {("ring", 4): curve}, ANY_RING, wire)


def test_what_a_bucket_size_leaves_exposed_is_worked_out_bucket_by_bucket() -> None:
    # Backwards: 1 MiB ready at 1 ms, 2 MiB at 5 ms, 1 MiB at 9 ms.
    readiness = Readiness((MEBIBYTE, 2 * MEBIBYTE, MEBIBYTE), (9e-3, 5e-3, 1e-3))
    by_size = {one.bucket_mib: one for one in candidates(readiness, alpha_s=2e-3)}
    # Alone: 1 to 4, 5 to 9, 9 to 12 ms; of two MiB at most likewise; in one: 9 to 15 ms.
    assert by_size[1].buckets == by_size[2].buckets == 3
    assert by_size[1].exposed_s == pytest.approx(3e-3, rel=1e-2)
    assert (by_size[4].buckets, by_size[4].exposed_s) == (1, pytest.approx(6e-3, rel=1e-2))
    assert best_fusion(tuple(by_size.values())).exposed_s == pytest.approx(3e-3, rel=1e-2)


def test_half_the_bytes_on_the_wire_take_half_the_time() -> None:
    readiness = Readiness((8 * MEBIBYTE,), (0.0,))
    whole, half = (candidates(readiness, 1e-9, wire)[-1].exposed_s for wire in ("fp32", "fp16"))
    assert (whole, half) == (pytest.approx(8e-3, rel=1e-2), pytest.approx(4e-3, rel=1e-2))


def test_latency_wants_large_buckets_and_overlap_wants_small_ones() -> None:
    together = Readiness((MEBIBYTE,) * 16, (0.0,) * 16)
    spread = Readiness((MEBIBYTE,) * 16, tuple(2e-3 * (16 - number) for number in range(16)))
    assert best_fusion(candidates(together, alpha_s=5e-3)).buckets == 1
    assert best_fusion(candidates(spread, alpha_s=1e-5)).buckets == 16
