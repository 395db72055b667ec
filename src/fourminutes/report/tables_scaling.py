"""The table of measured series."""

from __future__ import annotations

from collections.abc import Iterator

from fourminutes.errors import UserError
from fourminutes.report import words
from fourminutes.report.evidence import Evidence
from fourminutes.report.scalings import STEP_PARTS, Estimated, Scaling, step_ms
from fourminutes.report.table import Cell, Column, Row, Table, digits
from fourminutes.scale.series import predicted_step_s


def measured_scaling_table(evidence: Evidence) -> Table:
    """One row a series and number of processes."""
    rows = tuple(Row(_cells(one) | _prediction(one, evidence), anchor=one.anchor) for one in evidence.scalings)
    return Table("scaling-measured", _columns(evidence), rows, tuple(_notes(evidence)))


def _columns(evidence: Evidence) -> tuple[Column, ...]:
    """The CSV has all of them; people see the efficiency against a node only where there are several."""
    no_nodes = all(one.of_node is None for one in evidence.scalings)
    return (
        Column("series", "series"),
        Column("plan", "plan", csv_only=True),
        Column("run", "run", csv_only=True),
        Column("mode", "mode"),
        Column("input", "input"),
        Column("processes", "procs", digits(0)),
        Column("nodes", "nodes", digits(0)),
        Column("batch", "batch", digits(0)),
        Column("per_device", "a pass", digits(0), csv_only=True),
        *_estimated("images_per_s", "img/s", shown=True),
        *_estimated("efficiency_percent", "eff. %", shown=False),
        *_estimated("node_efficiency_percent", "of nodes %", shown=False, hidden=no_nodes),
        Column("step_ms", "step ms", digits(1)),
        Column("predicted_ms", "predicted ms", digits(1)),
        Column("off_percent", "off %", digits(1)),
        *_shares(),
        Column("steps", "steps", digits(0), csv_only=True),
        Column("n", "n", digits(0)),
        Column("skipped_steps", "skipped", digits(0), csv_only=True),
        Column("record", "record", csv_only=True),
    )


def _estimated(key: str, heading: str, *, shown: bool, hidden: bool = False) -> Iterator[Column]:
    """A number and the ends of its interval, which people see where they are `shown`."""
    yield Column(key, heading, digits(1), csv_only=hidden)
    yield Column(f"{key}_low", "from", digits(1), csv_only=hidden or not shown)
    yield Column(f"{key}_high", "to", digits(1), csv_only=hidden or not shown)


def _shares() -> Iterator[Column]:
    """The parts of a step's time, and beside rank 0's wait for gradients the least of any rank's."""
    for _, name in STEP_PARTS:
        yield Column(f"{name}_percent", f"{name} %", digits(1))
        if name == "comm":
            yield Column("least_comm_percent", "least %", digits(1))


def _cells(one: Scaling) -> dict[str, Cell]:
    record = one.record
    return {
        "series": one.label,
        "plan": record.plan,
        "run": record.measured.run,
        "mode": record.measured.mode,
        "input": record.measured.input,
        "processes": record.processes,
        "nodes": record.nodes,
        "batch": record.settings.batch.global_batch,
        "per_device": record.settings.batch.per_device,
        **_numbers("images_per_s", one.rate),
        **_numbers("efficiency_percent", one.of_process),
        **_numbers("node_efficiency_percent", one.of_node),
        "step_ms": step_ms(record),
        **{f"{name}_percent": record.percent(part) for part, name in STEP_PARTS},
        "least_comm_percent": record.least_wait_percent,
        "steps": len(record.repeats[0].steps_s),
        "n": len(record.repeats),
        "skipped_steps": record.skipped_steps,
        "record": one.path.as_posix(),
    }


def _prediction(one: Scaling, evidence: Evidence) -> dict[str, Cell]:
    """What the simulation says of a weak series from its one process and the plan's own collectives, where both are."""
    alone = next((other.record for other in evidence.scalings if _is_alone(other, one)), None)
    comm = next((comm.record for comm in evidence.comms if comm.path == evidence.plan.comm_record), None)
    if one.record.processes == 1 or one.record.measured.mode != "weak" or alone is None or comm is None:
        return {}
    try:
        predicted_ms = 1e3 * predicted_step_s(one.record, alone, comm)
    except UserError:  # its arrangement was not among those measured
        return {}
    return {"predicted_ms": predicted_ms, "off_percent": 100 * (predicted_ms / step_ms(one.record) - 1)}


def _is_alone(other: Scaling, one: Scaling) -> bool:
    """Whether it is the same series, of the same way to time it, on one process."""
    same = (other.record.plan, other.record.series, other.record.measured.key)
    return other.record.processes == 1 and same == (one.record.plan, one.record.series, one.record.measured.key)


def _numbers(key: str, estimated: Estimated | None) -> dict[str, Cell]:
    if estimated is None:
        return {}
    return {key: estimated.value, f"{key}_low": estimated.low, f"{key}_high": estimated.high}


def _notes(evidence: Evidence) -> Iterator[str]:
    yield (
        "img/s: median of n repeats of some steps each, and its 95 % interval by order statistics, of one start: what "
        "differs from start to start is not in it; eff. %: share of as many times the rate of one process; step ms: "
        "batch / img/s; its shares are rank 0's; comm: waiting for gradients that no computing hides; least: of the "
        "process that waited least, which is what the reduction takes; where others wait longer, it is for a slow one."
    )
    if any(_prediction(one, evidence) for one in evidence.scalings):
        yield (
            "predicted ms: the simulation, from the series on one process and the plan's collectives; off: how much "
            "that is too long. It takes computing to be as fast as alone, which on shared cores it is not."
        )
    if any(one.of_node for one in evidence.scalings):
        yield "of nodes %: share of as many times the rate of one full node."
    if skipped := [f"{one.label} on {one.record.processes}" for one in evidence.scalings if one.record.skipped_steps]:
        yield f"With steps that were skipped for an overflow, and are shorter: {', '.join(skipped)}."
    crowded = [one for one in evidence.scalings if _shares_cores(one)]
    if crowded:
        told = ", ".join(f"{one.label} on {words.count(one.record.processes, 'process')}" for one in crowded)
        yield f"More threads than cores, so that processes took turns: {told}."
    if outdated := [f"{one.label} on {one.record.processes}" for one in evidence.scalings if one.outdated]:
        yield f"Measured with settings that the plan has changed since: {', '.join(outdated)}."


def _shares_cores(one: Scaling) -> bool:
    """Whether the processes on a host, on its CPU, had fewer cores than threads that compute."""
    record = one.record
    if record.placement.device != "cpu":
        return False
    return record.processes // record.nodes * record.settings.threads > record.provenance.cpu_cores
