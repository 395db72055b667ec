"""Predicting measured runs at other numbers of processes, the work of each process kept (weak scaling). No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fourminutes.comm.fit import UNLIMITED_BYTE_S
from fourminutes.errors import UserError
from fourminutes.plan import WIRE_BYTES, Plan, ScalePlan, Wire
from fourminutes.record import (
    CommRecord,
    Epoch,
    LinkFit,
    Prediction,
    RunRecord,
    ScaleRecord,
    StepTimes,
    provenance,
    read_record,
)
from fourminutes.scale.costmodel import Link, Workload, bucket_count, step_time

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
    group_ranks = _group_ranks(comm)
    predictions = [
        prediction
        for run in runs
        for algorithm in ALGORITHMS
        for prediction in _predict(
            run, algorithm, _link(comm, algorithm, run.settings.reduce.wire, settings), group_ranks, settings
        )
    ]
    return ScaleRecord(
        plan=plan_name,
        settings=settings,
        provenance=provenance(),
        assumptions=_assumptions(comm, settings, group_ranks),
        predictions=tuple(predictions),
    )


def workload(run: RunRecord) -> Workload:
    """What one process does in one optimizer step, from the median of the run's epochs after the first."""
    backward_s, own_s = _per_step(run)
    wire_bytes = WIRE_BYTES[run.settings.reduce.wire]
    return Workload(
        compute_s=own_s,
        backward_s=backward_s / run.settings.micro_batches,
        gradient_bytes=run.parameters * wire_bytes,
        buckets=_buckets(run),
    )


def _buckets(run: RunRecord) -> int:
    """As many as there were, or, for a run of one process, as its plan asks for."""
    if run.reduction is not None:
        return len(run.reduction.buckets)
    return bucket_count(run.parameters, run.settings.reduce.bucket_mib)


def _per_step(run: RunRecord) -> tuple[float, float]:
    """Seconds a batch of the backward passes, and of all that a process does by itself."""
    starts = [0, *(epoch.steps for epoch in run.epochs)]
    epochs = [(epoch.times, _batches(epoch, start)) for epoch, start in zip(run.epochs, starts, strict=False)]
    # The first epoch warms caches and allocators up.
    later = epochs[1:] or epochs
    backward_s = statistics.median(times.backward_s / batches for times, batches in later)
    own_s = statistics.median(_own_s(times) / batches for times, batches in later)
    return backward_s, own_s


def _batches(epoch: Epoch, start: int) -> int:
    """Batches of an epoch that began after `start` steps: those skipped for an overflow were computed as well."""
    return epoch.steps - start + epoch.skipped_steps


def _own_s(times: StepTimes) -> float:
    return times.input_wait_s + times.compute_s + times.optimizer_s


def _predict(run: RunRecord, algorithm: str, link: Link, group_ranks: int, settings: ScalePlan) -> list[Prediction]:
    work = workload(run)
    images_per_process = run.settings.batch.global_batch / run.settings.processes
    predictions = []
    for processes in settings.world_sizes:
        step = step_time(work, algorithm, processes, link, group_ranks)
        predictions.append(
            Prediction(
                run=run.run,
                algorithm=algorithm,
                processes=processes,
                step_s=step.total_s,
                exposed_reduce_s=step.exposed_s,
                images_per_s=images_per_process * processes / step.total_s,
                efficiency_percent=100 * work.compute_s / step.total_s,
            )
        )
    return predictions


def _link(comm: CommRecord, algorithm: str, wire: Wire, settings: ScalePlan) -> Link:
    """The measured link of the algorithm, or what the settings assume in its place."""
    fit = _fit(comm, algorithm, wire)
    return Link(
        latency_s=settings.link_latency_us * 1e-6 if settings.link_latency_us else fit.alpha_s,
        bandwidth_byte_s=settings.link_gbit_s * 1e9 / 8 if settings.link_gbit_s else fit.bandwidth_byte_s,
    )


def _fit(comm: CommRecord, algorithm: str, wire: Wire) -> LinkFit:
    """The algorithm's first fit in the run's number format, or in another one, where a byte costs about the same."""
    fits = [fit for fit in comm.fits if fit.algorithm == algorithm]
    if not fits:
        raise UserError(f"comm record of plan {comm.plan!r}: has no fit for {algorithm}; measure again with comm bench")
    return next((fit for fit in fits if fit.wire == wire), fits[0])


def _group_ranks(comm: CommRecord) -> int:
    """The group size that the hierarchical form was measured with first, as its first fit was."""
    sizes = [timing.group_ranks for timing in comm.timings if timing.algorithm == "hierarchical"]
    return sizes[0] if sizes else 1  # without it `_fit` refuses the record, in words


def _assumptions(comm: CommRecord, settings: ScalePlan, group_ranks: int) -> tuple[str, ...]:
    bandwidth, latency = settings.link_gbit_s, settings.link_latency_us
    measured = f"fitted to collectives over {len(comm.placement.hosts)} processes, one fit an algorithm"
    unlimited = [fit.algorithm for fit in comm.fits if fit.bandwidth_byte_s >= UNLIMITED_BYTE_S]
    no_limit = f"; {', '.join(unlimited)} showed no limit there" if unlimited else ""
    return (
        "This is a first model: equations, not a simulation of events.",
        "Every process keeps its batch (weak scaling), and computes as fast as in the measured run, however many run.",
        "All messages, within a host and between hosts, cross the same kind of link.",
        f"The link's bandwidth is {f'{bandwidth:g} Gbit/s, as given' if bandwidth else measured + no_limit}.",
        f"The latency of a step is {f'{latency:g} us, as given' if latency else measured}.",
        f"The hierarchical form keeps groups of {group_ranks} processes, as measured.",
        "Gradients fill equal buckets, ready evenly over the last micro-batch's backward pass, an average one.",
        "Buckets are summed one after another; summing slows no computation down, and no process is late.",
    )
