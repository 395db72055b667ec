"""What would change on a measured cluster: each change is the simulator's answer with one thing different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.epochs import epoch_record, step_times

from fourminutes.plan import BatchPlan, CommBenchPlan, ReducePlan, RunPlan, ScalePlan
from fourminutes.record import CommRecord, Epoch, LinkFit, Placement, RunRecord, provenance
from fourminutes.scale.catalogue import CATALOGUE, read_catalogue
from fourminutes.scale.fitted import Fitted
from fourminutes.scale.network import Link
from fourminutes.scale.simulate import compute_of, reduce_of
from fourminutes.scale.step import simulate_step
from fourminutes.scale.whatif import Change, changes_of

HARDWARE = read_catalogue(Path(__file__).resolve().parents[2] / CATALOGUE)
SETTINGS = ScalePlan(spread_percent=1)
LINK = Link(50e-6, 1e9)


def comm_record() -> CommRecord:
    return CommRecord(
        plan="test",
        settings=CommBenchPlan(processes=16, group_ranks=4),
        placement=Placement(launcher="torchrun", hosts=("a",) * 16, device="cpu", backend="gloo"),
        provenance=provenance(),
        timings=(),
        fits=(LinkFit(algorithm="ring", alpha_s=LINK.latency_s, bandwidth_byte_s=LINK.bandwidth_byte_s),),
    )


def epoch(number: int, step_s: float) -> Epoch:
    own = {"input_wait_s": 0.0, "forward_s": 3 * step_s, "backward_s": 6 * step_s, "optimizer_s": 1 * step_s}
    rest = {"exposed_reduce_s": 0, "evaluation_s": 0, "checkpoint_s": 0, "other_s": 0}
    return epoch_record(number, steps_per_epoch=10, times=step_times(**own, **rest))


def run_record(*, device: str = "cpu", precision: str = "fp32") -> RunRecord:
    rates = (900.0, 1000.0, 950.0, 1050.0)
    epochs = [epoch(number, 0.2).model_copy(update={"images_per_s": rate}) for number, rate in enumerate(rates, 1)]
    return RunRecord(
        plan="test",
        run="a-run",
        settings=RunPlan(
            processes=8,
            precision=precision,
            batch=BatchPlan(global_batch=256, per_device=32),
            reduce=ReducePlan(wire="fp32", lanes=1),
        ),
        settings_hash="0",
        dataset="d",
        dataset_hash="0",
        class_count=1000,
        parameters=25_557_032,
        gradient_tensors=161,
        placement=Placement(launcher="torchrun", hosts=("a",) * 8, device=device, backend="gloo"),
        provenance=provenance(),
        epochs=tuple(epochs),
        sessions=(),
        parameter_checksum="0",
    )


def changes(run: RunRecord | None = None) -> dict[str, Change]:
    found = changes_of(run or run_record(), comm_record(), SETTINGS, HARDWARE)
    return {one.change: one for one in found}


def simulated(link: Link, wire: str = "fp32") -> float:
    run = run_record()
    reduce = reduce_of(run).model_copy(update={"wire": wire})
    return simulate_step(compute_of(run, 0.01), reduce, Fitted({"ring": link}), 8, 1).total_s


def test_each_change_is_the_simulators_step() -> None:
    found = changes()
    assert found["as it is"].step_s.value == simulated(LINK)
    assert found["network x2"].step_s.value == pytest.approx(simulated(Link(25e-6, 2e9)))
    assert found["network x10"].step_s.value == pytest.approx(simulated(Link(5e-6, 10e9)))
    assert found["half precision"].step_s.value == pytest.approx(simulated(LINK, "fp16"))


def test_a_change_in_percent_is_of_images_against_the_cluster_as_it_is() -> None:
    found = changes()
    before, after = found["as it is"], found["network x10"]
    assert before.change_percent == pytest.approx(0)
    assert after.change_percent == pytest.approx(100 * (after.images_per_s.value / before.images_per_s.value - 1))
    assert before.images_per_s.value == pytest.approx(256 / before.step_s.value)


def test_a_faster_network_and_perfect_overlap_are_in_order() -> None:
    found = changes()
    names = ("as it is", "network x2", "network x10", "perfect overlap")
    assert [found[name].step_s.value for name in names] == sorted(
        (found[name].step_s.value for name in names), reverse=True
    )
    # Without communication only the slowest device's lateness is left.
    run = run_record()
    nothing = Fitted({"ring": Link(0.0, 1e30)})
    free = simulate_step(compute_of(run, 0.01), reduce_of(run), nothing, 8, 1)
    assert found["perfect overlap"].step_s.value == pytest.approx(free.total_s)


def test_twice_the_batch_computes_twice_as_long_and_updates_once() -> None:
    run = run_record()
    compute = compute_of(run, 0.01)
    ready = replace(compute.readiness, ready_s=tuple(2 * time for time in compute.readiness.ready_s))
    larger = replace(compute, forward_s=2 * compute.forward_s, readiness=ready)
    step = simulate_step(larger, reduce_of(run), Fitted({"ring": LINK}), 8, 1)
    found = changes()["batch x2"]
    assert found.step_s.value == pytest.approx(step.total_s)
    assert found.images_per_s.value == pytest.approx(512 / step.total_s)


def test_half_precision_computes_faster_on_a_device_whose_rates_are_known() -> None:
    found = changes(run_record(device="Tesla P40"))["half precision"]
    assert "x1.27" in found.note
    assert found.step_s.value < changes()["half precision"].step_s.value


def test_what_was_measured_is_told_apart_and_intervals_hold_their_values() -> None:
    found = changes()
    assert [name for name, one in found.items() if one.basis == "measured"] == ["measured"]
    rate = found["measured"].images_per_s
    assert (rate.low, rate.value, rate.high) == pytest.approx((950, 1000, 1050))
    for one in found.values():
        for what in (one.step_s, one.images_per_s, one.efficiency_percent):
            assert what.low <= what.value <= what.high
    # The range over epochs, in proportion, is no narrower on predictions.
    assert found["as it is"].step_s.high >= found["as it is"].step_s.value / 0.95
