"""What one change would make of a measured run."""

import pytest
from test_costmodel import LINK, comm_record, run_record

from fourminutes.plan import ScalePlan
from fourminutes.scale.network import Link
from fourminutes.scale.whatif import Change, changes, what_if_text

SLOW = Link(1e-4, 5e8)


def found(link: Link = SLOW, wire: str = "fp32", **scale: object) -> dict[str, Change]:
    settings = ScalePlan.model_validate({"spread_percent": 2, **scale})
    return {one.what: one for one in changes(run_record(wire), comm_record(link), settings, 64)}


def test_perfect_overlap_leaves_what_waits_for_the_slowest() -> None:
    by_what = found(spread_percent=0)
    assert by_what["perfect overlap"].step_s == pytest.approx(1.5, rel=1e-6)
    assert by_what["perfect overlap"].images_s == pytest.approx(64 * 128 / 1.5, rel=1e-6)
    assert by_what["perfect overlap"].efficiency_percent == pytest.approx(100, rel=1e-6)


def test_gains_are_against_the_run_as_it_is() -> None:
    by_what = found()
    base = by_what["as it is"]
    assert base.gain_percent == 0
    for one in by_what.values():
        assert one.gain_percent == pytest.approx(100 * (one.images_s / base.images_s - 1))


def test_no_change_for_the_better_loses_and_more_bandwidth_gains_more() -> None:
    by_what = found()
    assert min(one.gain_percent for one in by_what.values()) >= -1e-9
    twice, ten_times, perfect = (
        by_what[what].gain_percent
        for what in ("network of twice the bandwidth", "network of ten times the bandwidth", "perfect overlap")
    )
    assert 0 < twice < ten_times < perfect


def test_half_precision_on_the_wire_is_worth_twice_the_bandwidth() -> None:
    by_what = found(Link(0.0, 5e8))
    wire, network = by_what["half precision on the wire"], by_what["network of twice the bandwidth"]
    assert wire.step_s == pytest.approx(network.step_s)
    assert "half precision on the wire" not in found(wire="fp16")


def test_twice_the_batch_shares_the_communication_among_twice_the_images() -> None:
    by_what = found(spread_percent=0)
    base, twice = by_what["as it is"], by_what["twice the batch, by micro-batches"]
    # All but the update is done twice.
    assert twice.step_s == pytest.approx(base.step_s + 0.9 * 1.5)
    assert twice.images_s == pytest.approx(64 * 256 / twice.step_s)


def test_with_two_levels_only_the_network_between_nodes_changes() -> None:
    by_what = found(LINK, node_ranks=8, link_gbit_s=1, link_latency_us=10)
    assert by_what["network of ten times the bandwidth"].gain_percent > 0


def test_the_table_begins_with_the_run_as_it_is_and_then_has_what_helps_most() -> None:
    text = what_if_text(run_record("fp32"), 64, list(found().values()))
    lines = text.splitlines()[4:]
    assert lines[0].startswith("as it is")
    gains = [float(line.split()[-1]) for line in lines[1:]]
    assert gains == sorted(gains, reverse=True)
