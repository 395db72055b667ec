"""Predicting measured runs at other numbers of processes, the work of each process kept (weak scaling). No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np

from fourminutes.comm.fit import UNLIMITED_BYTE_S
from fourminutes.comm.tuner import Readiness
from fourminutes.errors import UserError
from fourminutes.plan import Plan, ReducePlan, RunPlan, ScalePlan
from fourminutes.record import (
    CommRecord,
    Epoch,
    Placement,
    Prediction,
    Reduction,
    RunRecord,
    ScaleRecord,
    StepTimes,
    provenance,
    read_record,
)
from fourminutes.scale.fitted import costs_of
from fourminutes.scale.layers import layers_of, readiness
from fourminutes.scale.network import Costs
from fourminutes.scale.step import ALONE_MIB, Compute, simulate_step

ALGORITHMS = ("ring", "hierarchical")


def simulate_plan(plan: Plan) -> ScaleRecord:
    """Predict all runs of `plan` from the records in its results folder.

    Raises:
        UserError: the plan has no scale block, or a record is missing or damaged.
    """
    if plan.scale is None:
        raise UserError(f"plan {plan.name!r} has no scale block; add one to predict other sizes")
    runs = [read_record(plan.run_record(name), RunRecord) for name in plan.runs]
    return simulate(plan.name, runs, read_record(plan.comm_record, CommRecord), plan.scale)


def simulate(plan_name: str, runs: Sequence[RunRecord], comm: CommRecord, settings: ScalePlan) -> ScaleRecord:
    """Predict every run at every world size of `settings`, with the ring and with the hierarchical all-reduce.

    Raises:
        UserError: `comm` has no fit for an algorithm.
    """
    group_ranks = group_ranks_of(comm)
    predictions = [prediction for run in runs for prediction in _predict(run, comm, settings, group_ranks)]
    return ScaleRecord(
        plan=plan_name,
        settings=settings,
        provenance=provenance(),
        assumptions=_assumptions(comm, settings, group_ranks),
        predictions=tuple(predictions),
    )


def compute_of(run: RunRecord, spread: float = 0.0) -> Compute:
    """What one process does in an optimizer step, from the median of the run's epochs after the first; in seconds.

    The measured backward pass is parted among the layers in proportion to their arithmetic. Tensors are the buckets
    that the run had, or, where it was one process alone, the network's own.
    """
    buckets = run.reduction.buckets if run.reduction else None
    return compute_from(_per_step(run), run.settings, run.class_count, buckets, spread)


def compute_from(
    times: Mapping[str, float],
    settings: RunPlan,
    class_count: int,
    buckets: Sequence[int] | None,
    spread: float = 0.0,
) -> Compute:
    """One process's own part of a step, from the seconds a step of `OWN_PARTS`.

    Args:
        times: seconds by name of the part; of all micro-batches together.
        settings: network and micro-batches.
        class_count: of the network's last layer.
        buckets: elements of each, in the order of reduction; None takes the network's own tensors.
        spread: see `Compute`.
    """
    last_s = times["backward_s"] / settings.micro_batches
    by_tensor = readiness(layers_of(settings.model, class_count), last_s)
    return Compute(
        input_s=times["input_wait_s"],
        forward_s=times["forward_s"] + times["backward_s"] - last_s,
        readiness=_by_bucket(by_tensor, buckets) if buckets else by_tensor,
        optimizer_s=times["optimizer_s"],
        spread=spread,
    )


def reduce_of(run: RunRecord) -> ReducePlan:
    """How the run's gradients are averaged, for the tensors of `compute_of`."""
    return reduce_from(run.settings.reduce, run.reduction, run.placement)


def reduce_from(asked: ReducePlan, reduction: Reduction | None, placement: Placement) -> ReducePlan:
    """What was asked for, or in its place what was chosen, with buckets as they were; a GPU has one lane."""
    lanes = 1 if placement.backend == "nccl" else asked.lanes
    if reduction is None:
        return asked.model_copy(update={"lanes": lanes})
    return reduction.settings.model_copy(update={"lanes": lanes, "bucket_mib": ALONE_MIB, "segments": ()})


def _by_bucket(by_tensor: Readiness, buckets: Sequence[int]) -> Readiness:
    """Buckets, of so many elements in the order of reduction, in the place of tensors: ready with their last one."""
    # Gradients come in backward order; a bucket's end is found among the bytes that are there by then.
    come = list(accumulate(reversed(by_tensor.tensor_bytes)))
    ready_s = list(accumulate(reversed(by_tensor.ready_s), max))
    sizes = [4 * elements for elements in buckets]
    places = np.minimum(np.searchsorted(come, list(accumulate(sizes))), len(come) - 1)
    return Readiness(tuple(reversed(sizes)), tuple(reversed([ready_s[place] for place in places])))


def _per_step(run: RunRecord) -> dict[str, float]:
    """Seconds a batch of each part that a process does by itself."""
    starts = [0, *(epoch.steps for epoch in run.epochs)]
    epochs = [(epoch.times, _batches(epoch, start)) for epoch, start in zip(run.epochs, starts, strict=False)]
    # The first epoch warms caches and allocators up.
    later = epochs[1:] or epochs
    return {part: statistics.median(_seconds(times, part) / batches for times, batches in later) for part in OWN_PARTS}


#: What a process does by itself, as `StepTimes` has it.
OWN_PARTS = ("input_wait_s", "forward_s", "backward_s", "optimizer_s")


def _seconds(times: StepTimes, part: str) -> float:
    return float(getattr(times, part))


def _batches(epoch: Epoch, start: int) -> int:
    """Batches of an epoch that began after `start` steps: those skipped for an overflow were computed as well."""
    return epoch.steps - start + epoch.skipped_steps


def _predict(run: RunRecord, comm: CommRecord, settings: ScalePlan, group_ranks: int) -> Iterator[Prediction]:
    """By every algorithm, at every size."""
    costs = costs_of(comm, run.settings.reduce.wire, settings)
    compute, reduce = compute_of(run, settings.spread_percent / 100), reduce_of(run)
    images = run.settings.batch.global_batch / run.settings.processes
    for algorithm in ALGORITHMS:
        alike = reduce.model_copy(update={"algorithm": algorithm, "choices": (), "tuning": None, "group_ranks": None})
        for processes in settings.world_sizes:
            yield _prediction(run, compute, alike, costs, processes, group_ranks, images)


def _prediction(
    run: RunRecord,
    compute: Compute,
    reduce: ReducePlan,
    costs: Costs,
    processes: int,
    group_ranks: int,
    images: float,
) -> Prediction:
    step = simulate_step(compute, reduce, costs, processes, group_ranks)
    return Prediction(
        run=run.run,
        algorithm=reduce.algorithm,
        processes=processes,
        step_s=step.total_s,
        step_low_s=step.low_s,
        step_high_s=step.high_s,
        exposed_reduce_s=step.exposed_s,
        late_s=step.late_s,
        idle_percent=step.idle_percent,
        images_per_s=images * processes / step.total_s,
        efficiency_percent=step.efficiency_percent,
    )


def group_ranks_of(comm: CommRecord) -> int:
    """The group size that the hierarchical form was measured with first, as its first fit was."""
    sizes = [timing.group_ranks for timing in comm.timings if timing.algorithm == "hierarchical"]
    return sizes[0] if sizes else 1


def _assumptions(comm: CommRecord, settings: ScalePlan, group_ranks: int) -> tuple[str, ...]:
    levels = (
        f"Nodes have {settings.node_ranks} processes, which share a node's link."
        if settings.node_ranks > 1
        else "All messages, within a host and between hosts, cross the same kind of link."
    )
    bandwidth, latency = settings.link_gbit_s, settings.link_latency_us
    measured = f"fitted to collectives over {len(comm.placement.hosts)} processes, one fit an algorithm"
    unlimited = [fit.algorithm for fit in comm.fits if fit.bandwidth_byte_s >= UNLIMITED_BYTE_S]
    no_limit = f"; {', '.join(unlimited)} showed no limit there" if unlimited else ""
    return (
        "A simulation of one step's events: buckets become ready, queue, and share the links.",
        "Every process keeps its batch (weak scaling), and computes as fast as in the measured run, however many run.",
        levels,
        f"The bandwidth between nodes is {f'{bandwidth:g} Gbit/s, as given' if bandwidth else measured + no_limit}.",
        f"The latency of a step is {f'{latency:g} us, as given' if latency else measured}.",
        f"The hierarchical form keeps groups of {group_ranks} processes, as measured.",
        "The measured backward pass is parted among layers by their arithmetic; summing slows no computing down.",
        f"A process's computing spreads by {settings.spread_percent:g} % from step to step, an assumption of the plan; "
        "all wait for the slowest.",
    )
