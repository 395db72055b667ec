"""The cost of collectives and steps: step counts, limits, and the link found again from its own times."""

import itertools
from collections.abc import Callable

import pytest
from comm_records import ALGORITHMS, allreduce_time, comm_record, timing, timings_of
from support.epochs import epoch_record, step_times

from fourminutes.comm.calls import Calls, StageCalls
from fourminutes.comm.fit import UNLIMITED_BYTE_S, cost_terms, fit_links, fit_stages
from fourminutes.errors import UserError
from fourminutes.plan import BatchPlan, ReducePlan, RunPlan, ScalePlan
from fourminutes.record import (
    Epoch,
    Placement,
    Reduction,
    RunRecord,
    provenance,
)
from fourminutes.scale.fitted import costs_of
from fourminutes.scale.network import Link, Network
from fourminutes.scale.simulate import compute_of, reduce_of, simulate
from fourminutes.scale.step import simulate_step

LINK = Link(latency_s=10e-6, bandwidth_byte_s=10e9)


# --- the equations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "processes", "group_ranks", "steps"),
    [
        ("ring", 1024, 1024, 2046),
        ("hierarchical", 1024, 16, 186),
        ("hierarchical", 1024, 8, 282),
        ("hierarchical", 1024, 64, 282),
        ("hierarchical", 2048, 32, 250),
        ("hierarchical", 512, 16, 122),
        ("torus", 1024, 16, 156),
    ],
)
def test_step_counts_by_hand(algorithm: str, processes: int, group_ranks: int, steps: int) -> None:
    assert cost_terms(algorithm, processes, group_ranks)[0] == steps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_process_takes_no_time(algorithm: str) -> None:
    assert allreduce_time(algorithm, 1e9, 1, LINK, group_ranks=4) == 0


@pytest.mark.parametrize("algorithm", ["hierarchical", "torus"])
def test_groups_of_one_are_the_ring(algorithm: str) -> None:
    assert cost_terms(algorithm, 12, 1) == cost_terms("ring", 12, 12)


def test_torus_moves_what_the_ring_moves() -> None:
    assert cost_terms("torus", 64, 8)[1] == pytest.approx(cost_terms("ring", 64, 64)[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_time_grows_with_processes_and_bytes(algorithm: str) -> None:
    by_processes = [allreduce_time(algorithm, 1e6, processes, LINK, 4) for processes in (1, 2, 4, 8, 64, 512, 2048)]
    by_bytes = [allreduce_time(algorithm, size, 64, LINK, 4) for size in (1e3, 1e5, 1e7, 1e9)]
    for times in (by_processes, by_bytes):
        assert all(shorter < longer for shorter, longer in itertools.pairwise(times))


def test_ring_by_hand() -> None:
    assert allreduce_time("ring", 1e6, 4, LINK, 4) == pytest.approx(6 * 10e-6 + 1.5 * 1e6 / 10e9)


def test_small_messages_want_the_hierarchy_and_large_ones_the_ring() -> None:
    def ring_is_faster(size: float) -> bool:
        return allreduce_time("ring", size, 1024, LINK, 16) < allreduce_time("hierarchical", size, 1024, LINK, 16)

    assert [ring_is_faster(size) for size in (1e4, 1e9)] == [False, True]


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UserError, match="no cost equation for 'tree'"):
        cost_terms("tree", 8, 2)


# --- the fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [LINK, Link(2e-3, 25e6), Link(1e-6, 400e9)], ids=str)
def test_fit_finds_the_link_that_made_the_times(link: Link) -> None:
    fits = fit_links(timings_of(link), 16)
    assert [fit.algorithm for fit in fits] == list(ALGORITHMS)
    for fit in fits:
        assert fit.alpha_s == pytest.approx(link.latency_s, rel=1e-6)
        assert fit.bandwidth_byte_s == pytest.approx(link.bandwidth_byte_s, rel=1e-6)


def test_times_that_shrink_with_size_fit_no_negative_bandwidth() -> None:
    (fit,) = fit_links([timing("ring", 1024, 2e-3), timing("ring", 1_048_576, 1e-3)], 4)
    assert fit.bandwidth_byte_s == pytest.approx(UNLIMITED_BYTE_S)
    assert 0 < fit.alpha_s < 2e-3 / 6


def stage_calls(seconds: Callable[[int], float]) -> list[Calls]:
    """Of one arrangement with one stage, at six sizes, three calls each, all alike."""
    return [
        Calls("ring", 4, "fp16", size, (2.0,) * 3, (StageCalls("all_reduce, world", size, (seconds(size),) * 3),))
        for size in (2**power for power in range(10, 21, 2))
    ]


def test_a_stages_fit_finds_what_made_the_times_and_how_sure_it_is() -> None:
    (fit,) = fit_stages(stage_calls(lambda size: 0.1 + 1e-6 * size))
    assert (fit.algorithm, fit.stage, fit.group_ranks, fit.wire, fit.sizes) == (
        "ring",
        "all_reduce, world",
        4,
        "fp16",
        6,
    )
    for found, expected in ((fit.alpha_s, 0.1), (fit.beta_s_byte, 1e-6)):
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.low == pytest.approx(found.high) == pytest.approx(found.value)


def test_a_stage_that_ended_with_the_one_before_it_once_is_not_all_that_counts() -> None:
    (fit,) = fit_stages(stage_calls(lambda size: 0.0 if size == 2**12 else 0.1 + 1e-6 * size))
    assert fit.beta_s_byte.value == pytest.approx(1e-6, rel=0.5)


# --- predictions of runs --------------------------------------------------------------------------------------------


def epoch(number: int, step_s: float, steps: int = 10) -> Epoch:
    """What a step takes by itself is `step_s`; what else there is must not count."""
    own = {"input_wait_s": 0.1, "forward_s": 0.3, "backward_s": 0.5, "optimizer_s": 0.1}
    others = {"exposed_reduce_s": 3, "evaluation_s": 4, "checkpoint_s": 5, "other_s": 6}
    times = step_times(**{part: share * step_s * steps for part, share in own.items()}, **others)
    return epoch_record(number, steps_per_epoch=steps, times=times)


def run_record(wire: str = "fp16") -> RunRecord:
    return RunRecord(
        plan="test",
        run="a-run",
        settings=RunPlan(
            processes=2,
            batch=BatchPlan(global_batch=256, per_device=32),
            reduce=ReducePlan(wire=wire, bucket_mib=25),
        ),
        settings_hash="0",
        dataset="d",
        dataset_hash="0",
        class_count=1000,
        parameters=25_557_032,
        gradient_tensors=161,
        placement=Placement(launcher="torchrun", hosts=("a", "a"), device="cpu", backend="gloo"),
        provenance=provenance(),
        epochs=(epoch(1, 7.0), epoch(2, 2.0), epoch(3, 1.0), epoch(4, 1.5)),
        sessions=(),
        parameter_checksum="0",
    )


def test_computing_is_the_median_of_the_later_epochs() -> None:
    compute = compute_of(run_record())
    assert compute.total_s == pytest.approx(1.5)
    # Half of a step is backward, and only the last of four micro-batches sums beside it.
    assert compute.backward_s == pytest.approx(1.5 * 0.5 / 4)
    assert compute.input_s == pytest.approx(0.15)
    assert compute.forward_s == pytest.approx(1.5 * (0.3 + 0.5 * 3 / 4))


def test_a_run_of_one_process_has_its_networks_tensors() -> None:
    sizes = compute_of(run_record()).readiness.tensor_bytes
    assert (len(sizes), sum(sizes)) == (161, 4 * 25_557_032)


def test_a_run_is_predicted_with_the_buckets_that_it_had() -> None:
    # Buckets are in the order of reduction: the last layers' first.
    reduction = Reduction(settings=ReducePlan(bucket_mib=25), buckets=(2_049_000, 20_000_000, 3_508_032))
    run = run_record().model_copy(update={"reduction": reduction})
    compute, reduce = compute_of(run), reduce_of(run)
    assert compute.readiness.tensor_bytes == (4 * 3_508_032, 4 * 20_000_000, 4 * 2_049_000)
    first, _, last = compute.readiness.ready_s
    assert first == pytest.approx(compute.backward_s)
    # fc is ready almost at once.
    assert last < 0.02 * compute.backward_s
    step = simulate_step(compute, reduce, costs_of(comm_record(LINK), "fp16", ScalePlan()), 16)
    assert step.buckets == 3


def test_batches_whose_step_was_skipped_were_computed_all_the_same() -> None:
    run = run_record()
    # Of the same ten batches an epoch, the second one's first nine overflowed.
    skipped = [run.epochs[0], *(later.model_copy(update={"steps": later.steps - 9}) for later in run.epochs[1:])]
    skipped[1] = skipped[1].model_copy(update={"skipped_steps": 9})
    assert compute_of(run.model_copy(update={"epochs": tuple(skipped)})) == compute_of(run)


def test_nodes_of_several_processes_have_two_levels() -> None:
    settings = ScalePlan(node_ranks=8, inner_gbit_s=80, inner_latency_us=2, link_gbit_s=40, link_latency_us=4)
    expected = Network(Link(2e-6, 10e9), Link(4e-6, 5e9), node_ranks=8)
    assert costs_of(comm_record(LINK), "fp16", settings) == expected


def test_what_is_not_given_of_two_levels_is_the_measured_ring() -> None:
    assert costs_of(comm_record(LINK), "fp16", ScalePlan(node_ranks=8)) == Network(LINK, LINK, node_ranks=8)


def test_prediction_of_one_process_has_full_efficiency_and_its_own_rate() -> None:
    record = simulate("test", [run_record()], comm_record(LINK), ScalePlan(world_sizes=(1,)))
    for prediction in record.predictions:
        assert prediction.efficiency_percent == 100
        assert prediction.exposed_reduce_s == 0
        assert prediction.images_per_s == pytest.approx(128 / 1.5)


def test_every_run_algorithm_and_size_is_predicted() -> None:
    settings = ScalePlan()
    record = simulate("test", [run_record(), run_record("fp32")], comm_record(LINK), settings)
    keys = [(prediction.algorithm, prediction.processes) for prediction in record.predictions]
    assert keys == 2 * list(itertools.product(("ring", "hierarchical"), settings.world_sizes))
    assert any("groups of 4 processes" in sentence for sentence in record.assumptions)


def test_efficiency_falls_with_the_number_of_processes_and_never_rises() -> None:
    slow = Link(1e-3, 1e8)
    record = simulate("test", [run_record()], comm_record(slow), ScalePlan())
    ring = [prediction.efficiency_percent for prediction in record.predictions if prediction.algorithm == "ring"]
    assert all(larger >= smaller for larger, smaller in itertools.pairwise(ring))
    assert ring[-1] < 20


def test_given_link_takes_the_place_of_the_measured_one() -> None:
    settings = ScalePlan(world_sizes=(64,), link_gbit_s=80, link_latency_us=10)
    given = simulate("test", [run_record()], comm_record(Link(1.0, 1.0)), settings)
    measured = simulate("test", [run_record()], comm_record(LINK), ScalePlan(world_sizes=(64,)))
    assert given.predictions == measured.predictions
    assert any("80 Gbit/s, as given" in sentence for sentence in given.assumptions)


def test_an_algorithm_that_was_not_measured_is_refused() -> None:
    comm = comm_record(LINK)
    ring = tuple(timing for timing in comm.timings if timing.algorithm == "ring")
    without = comm.model_copy(update={"fits": comm.fits[:1], "timings": ring})
    with pytest.raises(UserError, match="hierarchical: was not measured"):
        simulate("test", [run_record()], without, ScalePlan())


def test_a_measurement_without_the_ring_is_refused() -> None:
    without = comm_record(LINK).model_copy(update={"fits": comm_record(LINK).fits[1:]})
    with pytest.raises(UserError, match="has no fit for ring"):
        simulate("test", [run_record()], without, ScalePlan())


def test_the_more_processes_spread_the_longer_all_wait() -> None:
    idle = [
        simulate("test", [run_record()], comm_record(LINK), ScalePlan(spread_percent=spread)).predictions[-1]
        for spread in (0, 2, 10)
    ]
    assert [one.late_s > 0 for one in idle] == [False, True, True]
    assert idle[0].idle_percent < idle[1].idle_percent < idle[2].idle_percent
    assert idle[1].step_low_s < idle[1].step_s < idle[1].step_high_s
