"""What would change the recorded runs over several processes: one thing at a time, by the simulation."""

from __future__ import annotations

from collections.abc import Iterator

from fourminutes.errors import UserError
from fourminutes.record import CommRecord
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.table import Cell, Column, Row, Table, digits, signed
from fourminutes.scale.catalogue import CATALOGUE, Catalogue, read_catalogue
from fourminutes.scale.whatif import Change, changes_of


def what_if_table(evidence: Evidence) -> Table:
    """One row a run and change, the run as it was measured and as it is simulated first."""
    columns = (
        Column("run", "run"),
        Column("processes", "procs", digits(0)),
        Column("change", "what if"),
        Column("basis", "number is"),
        Column("step_ms", "step ms", digits(1)),
        Column("step_ms_low", "from", digits(1)),
        Column("step_ms_high", "to", digits(1)),
        Column("images_per_s", "img/s", digits(0)),
        Column("efficiency_percent", "eff. %", digits(0)),
        Column("change_percent", "gain %", signed(1)),
        Column("note", "note"),
    )
    rows = tuple(
        Row(_cells(run, change), "measured" if change.basis == "measured" else "predicted", run.anchor)
        for run, change in changes(evidence)
    )
    notes = (
        "Each change by itself, simulated from the run and the plan's collectives; gain: of images/s, against the run "
        "as it is simulated. from, to: 95 % of steps by the assumed spread, or the measured range over epochs where "
        "that is wider.",
    )
    empty = "No run over several processes and no collectives have been recorded yet."
    return Table("what-if", columns, rows, notes, empty=empty)


def changes(evidence: Evidence) -> Iterator[tuple[Run, Change]]:
    """The changes of every run of the plan over several processes, where the plan's collectives were measured too."""
    comm = next((comm.record for comm in evidence.comms if comm.path == evidence.plan.comm_record), None)
    if comm is None or evidence.plan.scale is None:
        return
    catalogue = read_catalogue(CATALOGUE) if CATALOGUE.is_file() else None
    for run in evidence.runs:
        if run.record.plan == evidence.plan.name and run.record.settings.processes > 1:
            yield from ((run, change) for change in _changes(run, comm, evidence, catalogue))


def _changes(run: Run, comm: CommRecord, evidence: Evidence, catalogue: Catalogue | None) -> list[Change]:
    assert evidence.plan.scale is not None
    try:
        return list(changes_of(run.record, comm, evidence.plan.scale, catalogue))
    except UserError:  # its arrangement was not among those measured
        return []


def _cells(run: Run, change: Change) -> dict[str, Cell]:
    return {
        "run": run.label,
        "processes": run.record.settings.processes,
        "change": change.change,
        "basis": change.basis,
        "step_ms": 1e3 * change.step_s.value,
        "step_ms_low": 1e3 * change.step_s.low,
        "step_ms_high": 1e3 * change.step_s.high,
        "images_per_s": change.images_per_s.value,
        "efficiency_percent": change.efficiency_percent.value,
        "change_percent": change.change_percent,
        "note": change.note or None,
    }
