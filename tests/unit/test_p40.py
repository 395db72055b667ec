"""The model of the paper's cluster: what it says follows from its ranges, and is held against what is published."""

import pytest

from fourminutes.report.published import published
from fourminutes.report.tables_p40 import facts_of, p40_table, sensitivity_table
from fourminutes.scale.network import Fastest, total_s
from fourminutes.scale.p40 import (
    POINTS,
    Point,
    baseline_of,
    network_of,
    predictions,
    ranges,
    sensitivities,
    step_of,
    value_of,
)

MIDDLE = {name: one.middle for name, one in ranges().items()}
EXACT = {**MIDDLE, "spread": 0.0, "other_share": 0.0}


def test_every_range_has_a_known_source_and_a_reason() -> None:
    for name, one in ranges().items():
        assert one.source in published().sources, name
        assert one.low <= one.middle <= one.high, name
        assert one.note, name


def test_a_range_goes_from_its_low_to_its_high_end() -> None:
    assert [ranges()["outer_gbyte_s"].at(share) for share in (0, 0.5, 1)] == pytest.approx([6, 8.75, 11.5])
    assert [ranges()["group_ranks"].at(share) for share in (0, 0.4, 0.99, 1)] == [8, 16, 32, 32]


def test_minutes_by_hand_where_nobody_is_late_and_messages_cost_nothing() -> None:
    free = {**EXACT, "inner_latency_us": 0.0, "outer_latency_us": 0.0, "inner_gbyte_s": 1e9, "outer_gbyte_s": 1e9}
    # 64 images at 218 a second, 90 epochs of 19.55 steps.
    by_hand = 90 * 1_281_167 / 65_536 * (64 / 218) / 60
    assert value_of(Point("resnet50", 1024, "minutes"), free) == pytest.approx(by_hand, rel=1e-4)
    assert value_of(Point("resnet50", 1024, "efficiency"), free) == pytest.approx(100, rel=1e-4)


def test_the_unfused_ring_waits_for_every_tensors_steps() -> None:
    step = baseline_of("resnet50", 1024, {**EXACT, "outer_latency_us": 10.0})
    assert step.buckets == 161
    assert step.communication_s > 161 * 2046 * 10e-6


def test_the_hybrid_takes_two_segments_and_for_each_the_faster_way() -> None:
    assert step_of("alexnet_bn", 1024, EXACT).buckets == 2
    network = network_of(EXACT)
    fastest = Fastest(network, ("ring", "hierarchical"))
    for size in (1e4, 1e8):
        ways = [network.parts(name, size, 1024, 16) for name in ("ring", "hierarchical")]
        assert total_s(fastest.parts("ring", size, 1024, 16)) == min(map(total_s, ways))


def test_intervals_are_in_order_and_the_same_each_time() -> None:
    first = predictions()
    predictions.cache_clear()
    assert predictions() == first
    assert [one.point for one in first] == list(POINTS)
    for one in first:
        assert one.low < one.median < one.high
        assert one.holds(one.median)
        assert not one.holds(one.high * 1.001)


def test_sensitivities_are_the_points_with_one_constant_moved() -> None:
    one = next(one for one in sensitivities() if one.constant == "spread" and one.point == POINTS[0])
    assert one.at_low == value_of(one.point, {**MIDDLE, "spread": 0.001})
    assert one.at_high == value_of(one.point, {**MIDDLE, "spread": 0.05})
    assert one.at_high > one.at_low


def test_every_confirmed_claim_of_the_paper_about_time_is_a_row() -> None:
    rows = p40_table(None).rows  # type: ignore[arg-type]  # it draws from nothing of the user's
    shown = {(row.cells["model"], row.cells["devices"], row.cells["published"].value) for row in rows}  # type: ignore[union-attr]
    assert {
        ("ResNet-50", 2048, 6.6),
        ("AlexNet", 1024, 4.0),
        ("ResNet-50", 1024, 11.0),
        ("AlexNet", 1024, 3.0),
    } <= shown


def test_within_is_said_of_what_lies_within() -> None:
    said = {
        (row.cells["model"], row.cells["devices"], row.cells["published"].value): row.cells["lies"]  # type: ignore[union-attr]
        for row in p40_table(None).rows  # type: ignore[arg-type]
    }
    for one in predictions():
        for fact in facts_of(one.point):
            name = {"resnet50": "ResNet-50", "alexnet_bn": "AlexNet"}[one.point.model]
            assert said[name, one.point.devices, fact.value] == ("yes" if one.low <= fact.value <= one.high else "no")


def test_the_table_of_constants_has_all_of_them() -> None:
    assert len(sensitivity_table(None).rows) == len(ranges())  # type: ignore[arg-type]
