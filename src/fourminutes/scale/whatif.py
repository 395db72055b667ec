"""What would change on the user's own cluster: network, overlap, precision, batch, from its records. No torch.

The base is the simulated step of the measured run on the measured collectives; each change is the same simulation with
one thing different. Its interval is 95 % of steps, by the spread of computing that the plan's scale block assumes, or
the measured range over epochs in proportion, whichever is wider.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from fourminutes.comm.tuner import Readiness
from fourminutes.errors import UserError
from fourminutes.plan import Plan, ReducePlan, ScalePlan
from fourminutes.record import CommRecord, RunRecord, read_record
from fourminutes.record.base import Record
from fourminutes.scale.catalogue import Catalogue, Device
from fourminutes.scale.clusters import Ranged
from fourminutes.scale.fitted import costs_of
from fourminutes.scale.network import Costs, Part
from fourminutes.scale.simulate import compute_of, group_ranks_of, reduce_of
from fourminutes.scale.step import Compute, Step, simulate_step


class Change(Record):
    """A run's step with one thing different."""

    run: str
    change: str
    basis: Literal["measured", "predicted"]
    step_s: Ranged
    images_per_s: Ranged
    efficiency_percent: Ranged
    change_percent: float = Field(description="of images/s, against the prediction for the cluster as it is")
    note: str = ""


class WhatIf(Record):
    """All changes of all runs of a plan."""

    kind: Literal["what_if"] = "what_if"
    plan: str
    processes: dict[str, int]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Faster:
    """Any network, so many times faster, in bandwidth and latency (`Costs`)."""

    costs: Costs
    factor: float

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """The stages of the same all-reduce."""
        own = self.costs.parts(algorithm, message_bytes, processes, group_ranks)
        return tuple(
            replace(part, latency_s=part.latency_s / self.factor, wire_s=part.wire_s / self.factor) for part in own
        )


@dataclass(frozen=True)
class _Setting:
    """All that a step is simulated from."""

    compute: Compute
    reduce: ReducePlan
    costs: Costs
    processes: int
    group_ranks: int
    images: float

    def step(self) -> Step:
        return simulate_step(self.compute, self.reduce, self.costs, self.processes, self.group_ranks)


def what_if(plan: Plan, catalogue: Catalogue) -> WhatIf:
    """Every run's changes.

    Raises:
        UserError: the plan has no runs, or a record is missing or damaged.
    """
    if not plan.runs:
        raise UserError(f"plan {plan.name!r}: has no runs; --what-if needs a plan whose runs have records")
    comm = read_record(plan.comm_record, CommRecord)
    runs = [read_record(plan.run_record(name), RunRecord) for name in plan.runs]
    changes = [change for run in runs for change in changes_of(run, comm, plan.scale or _ASSUMED, catalogue)]
    return WhatIf(plan=plan.name, processes={run.run: run.settings.processes for run in runs}, changes=tuple(changes))


_ASSUMED = ScalePlan(world_sizes=(1,))


def changes_of(run: RunRecord, comm: CommRecord, settings: ScalePlan, catalogue: Catalogue | None) -> Iterator[Change]:
    """What was measured, what the simulation gives for it, and for each change; `catalogue` knows devices' rates."""
    base = _base(run, comm, settings)
    as_is = base.step()
    yield _measured(run, as_is)
    yield _change(run, "as it is", base, as_is, as_is)
    for factor in (2.0, 10.0):
        faster = replace(base, costs=Faster(base.costs, factor))
        yield _change(run, f"network x{factor:g}", faster, faster.step(), as_is, "bandwidth and latency alike")
    free = replace(base, costs=Faster(base.costs, float("inf")))
    yield _change(run, "perfect overlap", free, free.step(), as_is, "no communication waited for")
    if base.reduce.wire == "fp32":
        yield _half(run, comm, settings, base, as_is, catalogue)
    doubled = replace(base, compute=_larger(base.compute, 2), images=2 * base.images)
    note = "computing twice as long; a batch twice as large may need more epochs"
    yield _change(run, "batch x2", doubled, doubled.step(), as_is, note)


def _base(run: RunRecord, comm: CommRecord, settings: ScalePlan) -> _Setting:
    processes = run.settings.processes
    return _Setting(
        compute=compute_of(run, settings.spread_percent / 100),
        reduce=reduce_of(run),
        costs=costs_of(comm, run.settings.reduce.wire, settings),
        processes=processes,
        group_ranks=group_ranks_of(comm),
        images=run.settings.batch.global_batch / processes,
    )


def _measured(run: RunRecord, as_is: Step) -> Change:
    """Epochs after the first: their median, slowest and fastest."""
    batch = run.settings.batch.global_batch
    low, middle, high = (share * _median(run) for share in _range(run))
    step = Ranged(value=batch / middle, low=batch / high, high=batch / low)
    return _told(run, "measured", batch, step, as_is, as_is.alone_s, "range over epochs")


def _change(run: RunRecord, name: str, setting: _Setting, step: Step, as_is: Step, note: str = "") -> Change:
    slow, _, fast = _range(run)
    length = Ranged(
        value=step.total_s, low=min(step.low_s, step.total_s / fast), high=max(step.high_s, step.total_s / slow)
    )
    return _told(run, name, setting.images * setting.processes, length, as_is, step.alone_s, note)


def _told(run: RunRecord, name: str, images: float, step: Ranged, as_is: Step, alone_s: float, note: str) -> Change:
    """A step's rate and efficiency, against one process that waits for nobody."""
    before = run.settings.batch.global_batch / as_is.total_s
    return Change(
        run=run.run,
        change=name,
        basis="measured" if name == "measured" else "predicted",
        step_s=step,
        images_per_s=Ranged(value=images / step.value, low=images / step.high, high=images / step.low),
        efficiency_percent=Ranged(
            value=100 * alone_s / step.value,
            low=100 * alone_s / step.high,
            high=max(100 * alone_s / step.value, min(100.0, 100 * alone_s / step.low)),
        ),
        change_percent=100 * (images / step.value / before - 1),
        note=note,
    )


def _rates(run: RunRecord) -> list[float]:
    return [epoch.images_per_s for epoch in run.epochs[1:] or run.epochs]


def _median(run: RunRecord) -> float:
    return statistics.median(_rates(run))


def _range(run: RunRecord) -> tuple[float, float, float]:
    """The slowest, median and fastest epoch's rate, as shares of the median."""
    return min(_rates(run)) / _median(run), 1.0, max(_rates(run)) / _median(run)


def _half(
    run: RunRecord, comm: CommRecord, settings: ScalePlan, base: _Setting, as_is: Step, catalogue: Catalogue | None
) -> Change:
    """Half the bytes on the wire, and, on a device with both rates in the catalogue, faster passes."""
    half = replace(base, reduce=base.reduce.model_copy(update={"wire": "fp16"}), costs=costs_of(comm, "fp16", settings))
    known = _device_of(run, catalogue)
    if run.settings.precision != "fp32" or known is None or known.half is None or known.fp32 is None:
        note = "on the wire only; the computing is left as measured"
        return _change(run, "half precision", half, half.step(), as_is, note)
    factor = known.half.value / known.fp32.value
    half = replace(half, compute=_larger(base.compute, 1 / factor))
    return _change(run, "half precision", half, half.step(), as_is, f"wire, and computing x{factor:.2f} as catalogued")


def _device_of(run: RunRecord, catalogue: Catalogue | None) -> Device | None:
    """The catalogue's device that the run computed on, where its name says so."""
    if catalogue is None:
        return None
    words = run.placement.device.replace("-", " ").split()
    names = [name for name in catalogue.devices if name.split("-")[0] in words]
    return catalogue.devices[names[0]] if names else None


def _larger(compute: Compute, factor: float) -> Compute:
    """So many times the images: passes and input take as many times as long, the update does not."""
    ready = compute.readiness
    return replace(
        compute,
        input_s=compute.input_s * max(1.0, factor),
        forward_s=compute.forward_s * factor,
        readiness=Readiness(ready.tensor_bytes, tuple(time * factor for time in ready.ready_s)),
    )
