"""Simulated steps held against replayed ones, by hand."""

import pytest
from replay_records import MIB, STEP_S, replay_record

from fourminutes.comm.tuner import Readiness, stretched
from fourminutes.errors import UserError
from fourminutes.scale.measured import measured
from fourminutes.scale.network import total_s
from fourminutes.scale.validate import held_against, rankings, verdict

HELD = {case.case: case for case in held_against(replay_record())}
# A MiB by the ring: a straight line between 16 KiB and 1 MiB + 16 KiB.
MIB_S = 0.05 + 0.1 * (MIB - 16 * 1024) / MIB


def test_measured_times_are_straight_lines_between_sizes() -> None:
    costs = measured(replay_record().timings, 4, "fp32")
    (part,) = costs.parts("ring", MIB, 4, 1)
    assert part.total_s == pytest.approx(MIB_S)
    assert part.latency_s == pytest.approx(0.05)
    assert total_s(costs.parts("hierarchical", 16 * 1024, 4, 2)) == pytest.approx(0.025)
    assert costs.parts("hierarchical", MIB, 4, 1)[0].total_s == pytest.approx(MIB_S)


@pytest.mark.parametrize(("algorithm", "processes", "group"), [("ring", 8, 1), ("torus", 4, 2), ("hierarchical", 4, 4)])
def test_what_was_not_measured_is_refused(algorithm: str, processes: int, group: int) -> None:
    with pytest.raises(UserError, match="was not measured"):
        measured(replay_record().timings, 4, "fp32").parts(algorithm, 1e6, processes, group)


def test_a_pass_is_stretched_and_small_tensors_keep_their_moments() -> None:
    whole = Readiness((MIB, 16 * 1024, MIB, 16 * 1024), (2.0, 1.5, 1.0, 0.5))
    assert stretched(whole, 0.4).ready_s == pytest.approx((0.4, 0.3, 0.2, 0.1))
    small = stretched(whole, 0.4, largest_bytes=64 * 1024)
    assert (small.tensor_bytes, small.ready_s) == ((16 * 1024, 16 * 1024), pytest.approx((0.3, 0.1)))


def test_buckets_one_by_one() -> None:
    # Ready after 0.1, 0.2, 0.3, 0.4 s; the first ends at 0.15, the second at 0.2 + MIB_S, both others queue.
    end_s = max(max(0.2 + MIB_S, 0.3) + 0.05, 0.4) + MIB_S
    assert HELD["one by one"].simulated_s == pytest.approx(0.1 + end_s + 0.1)
    assert HELD["one by one"].apart_s == pytest.approx(0.6 + 2 * MIB_S + 0.1)
    assert HELD["one by one"].beside_s == pytest.approx(0.2 + max(0.4, 2 * MIB_S + 0.1))


def test_one_bucket_waits_for_all() -> None:
    whole_s = 0.05 + 0.1 * (2 * MIB + 32 * 1024 - 16 * 1024) / MIB
    assert HELD["fused"].simulated_s == pytest.approx(0.1 + 0.4 + whole_s + 0.1)


def test_errors_are_shares_of_the_measured_median() -> None:
    case = HELD["fused"]
    assert (case.measured_s, case.low_s, case.high_s, case.n) == pytest.approx((1.1, 1.05, 1.15, 3))
    assert case.error_percent == pytest.approx(100 * (case.simulated_s / 1.1 - 1))
    assert case.spread_percent == pytest.approx(100 * 0.1 / 1.1)


def test_small_tensors_are_simulated_alone() -> None:
    # Of a pass of 0.2 s the two small ones are ready after 0.05 and 0.15 s, and the pass is over with the latter.
    assert HELD["small"].simulated_s == pytest.approx(0.1 + 0.15 + 0.05 + 0.1)


def test_a_verdict_sums_absolute_errors_up() -> None:
    cases = list(HELD.values())
    found = verdict(cases)
    errors = sorted(abs(case.error_percent) for case in cases)
    assert found.n == len(STEP_S)
    assert found.median == pytest.approx((errors[1] + errors[2]) / 2)
    assert found.worst == pytest.approx(errors[-1])
    assert found.worst_allowed == 25


def test_pairs_that_differ_in_their_arrangement_alone_are_ranked() -> None:
    ((one, other, right),) = rankings(list(HELD.values()))
    assert {one.case, other.case} == {"small", "pairs"}
    assert right
