"""What would change a measured run's step: one thing at a time, by the simulation. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tabulate import tabulate

from fourminutes.comm.tuner import Readiness
from fourminutes.plan import ReducePlan, ScalePlan
from fourminutes.record import CommRecord, RunRecord
from fourminutes.scale.fitted import Fitted, costs_of
from fourminutes.scale.network import Costs, Link, Network
from fourminutes.scale.simulate import compute_of, reduce_of
from fourminutes.scale.step import Compute, Step, simulate_step


@dataclass(frozen=True)
class Change:
    """What one change makes of a step; predicted.

    Attributes:
        what: the change, in words.
        step_s: length of a step, in seconds.
        low_s: 2.5 % of steps are shorter.
        high_s: 2.5 % are longer.
        images_s: of all processes.
        efficiency_percent: against as many processes that wait for nobody.
        gain_percent: of images/s, against no change.
    """

    what: str
    step_s: float
    low_s: float
    high_s: float
    images_s: float
    efficiency_percent: float
    gain_percent: float


@dataclass(frozen=True)
class _Case:
    """Everything that a step is simulated from."""

    compute: Compute
    reduce: ReducePlan
    costs: Costs
    images: float


def changes(run: RunRecord, comm: CommRecord, settings: ScalePlan, processes: int) -> list[Change]:
    """The run as it was over `processes` ranks, the work of each kept, and then with one thing changed at a time.

    Raises:
        UserError: `comm` has no fit for the ring.
    """
    group_ranks = run.reduction.settings.group_ranks if run.reduction else None
    start = _Case(
        compute=compute_of(run, settings.spread_percent / 100),
        reduce=_by_ring(reduce_of(run)),
        costs=costs_of(comm, run.settings.reduce.wire, settings),
        images=run.settings.batch.global_batch / run.settings.processes,
    )
    steps = [
        (what, case, simulate_step(case.compute, case.reduce, case.costs, processes, group_ranks or 1))
        for what, case in _cases(start)
    ]
    base = steps[0][1].images / steps[0][2].total_s
    return [_change(what, case, step, processes, base) for what, case, step in steps]


def _cases(start: _Case) -> Iterator[tuple[str, _Case]]:
    yield "as it is", start
    yield "network of twice the bandwidth", replace(start, costs=_network(start.costs, bandwidth=2))
    yield "network of ten times the bandwidth", replace(start, costs=_network(start.costs, bandwidth=10))
    yield "network of half the latency", replace(start, costs=_network(start.costs, latency=0.5))
    if start.reduce.wire == "fp32":
        yield "half precision on the wire", replace(start, reduce=start.reduce.model_copy(update={"wire": "fp16"}))
    yield "perfect overlap", replace(start, costs=_network(start.costs, bandwidth=1e9, latency=0))
    yield "no process late", replace(start, compute=replace(start.compute, spread=0.0))
    yield "no waiting for input", replace(start, compute=replace(start.compute, input_s=0.0))
    yield "computing twice as fast", replace(start, compute=_faster(start.compute))
    yield "twice the batch, by micro-batches", replace(start, compute=_twice(start.compute), images=2 * start.images)


def _by_ring(reduce: ReducePlan) -> ReducePlan:
    """The library's own all-reduce where choices name groups that other sizes do not have."""
    return reduce if reduce.algorithm == "ring" else reduce.model_copy(update={"algorithm": "ring", "choices": ()})


def _network(costs: Costs, bandwidth: float = 1, latency: float = 1) -> Costs:
    """The same links, between nodes where there are two levels, with other constants."""

    def changed(link: Link) -> Link:
        return Link(link.latency_s * latency, link.bandwidth_byte_s * bandwidth)

    if isinstance(costs, Network):
        return replace(costs, outer=changed(costs.outer))
    assert isinstance(costs, Fitted)
    return Fitted({name: changed(link) for name, link in costs.links.items()})


def _faster(compute: Compute) -> Compute:
    """Forward, backward and update in half their time."""
    ready = Readiness(compute.readiness.tensor_bytes, tuple(moment / 2 for moment in compute.readiness.ready_s))
    return replace(compute, forward_s=compute.forward_s / 2, readiness=ready, optimizer_s=compute.optimizer_s / 2)


def _twice(compute: Compute) -> Compute:
    """Twice as many passes, of which the last one's communication is hidden as before."""
    passes_s = compute.forward_s + compute.backward_s
    return replace(compute, input_s=2 * compute.input_s, forward_s=compute.forward_s + passes_s)


def _change(what: str, case: _Case, step: Step, processes: int, base: float) -> Change:
    rate = case.images / step.total_s
    return Change(
        what=what,
        step_s=step.total_s,
        low_s=step.low_s,
        high_s=step.high_s,
        images_s=processes * rate,
        efficiency_percent=step.efficiency_percent,
        gain_percent=100 * (rate / base - 1),
    )


def what_if_text(run: RunRecord, processes: int, found: list[Change]) -> str:
    """The changes as a table, the most useful first, below the run as it is."""
    first, *others = found
    rows = [
        (
            one.what,
            f"{one.step_s * 1e3:,.1f} ({one.low_s * 1e3:,.1f} to {one.high_s * 1e3:,.1f})",
            f"{one.images_s:,.0f}",
            f"{one.efficiency_percent:.0f}",
            "" if one is first else f"{one.gain_percent:+.1f}",
        )
        for one in [first, *sorted(others, key=lambda one: -one.gain_percent)]
    ]
    head = f"# {run.run} over {processes} processes, measured on {run.settings.processes}; all numbers are predicted"
    table = tabulate(
        rows, headers=["if", "step ms (95 %)", "images/s", "efficiency %", "gain %"], disable_numparse=True
    )
    return f"{head}\n\n{table}"
