"""The report's tables, each a function of the evidence and the published numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.published import System, published
from fourminutes.report.table import Cell, Column, Row, Table, digits
from fourminutes.report.tables_claims import claims_table, ledger_table, sweeps_table
from fourminutes.report.tables_compare import compare_table
from fourminutes.report.tables_measured import allreduce_table, data_table, scaling_table
from fourminutes.report.tables_p40 import p40_table, sensitivity_table
from fourminutes.report.tables_paper import ablations_table, half_precision_table, results_table, steps_table
from fourminutes.report.tables_profile import profile_table
from fourminutes.report.tables_scaling import measured_scaling_table
from fourminutes.report.tables_validation import validation_table
from fourminutes.report.tables_whatif import what_if_table


def runs_table(evidence: Evidence) -> Table:
    """One row a run; a run of the plan without a record keeps its row, empty."""
    rows = tuple(
        Row(_run_cells(slot), anchor=slot.anchor) if isinstance(slot, Run) else Row({"run": slot.label})
        for slot in evidence.slots
    )
    return Table("runs", _run_columns(evidence.runs), rows, tuple(_run_notes(evidence)))


def _run_notes(evidence: Evidence) -> Iterator[str]:
    yield (
        "top-1, top-5: % of validation images after the last epoch; wait: % of the time without input; "
        "time: with evaluation; n: recorded runs of the recipe."
    )
    if any(run.skipped_steps for run in evidence.runs):
        yield "skipped: batches without a step, for an overflow in fp16."
    for run in evidence.runs:
        yield from (f"{run.label}: {session.note}." for session in run.record.sessions if session.note)
        yield from (f"{run.label}: {words.ending(session)}." for session in run.record.sessions[:-1])
    if evidence.missing:
        yield f"No record yet: {', '.join(evidence.missing)}."
    if outdated := [run.label for run in evidence.runs if run.outdated]:
        yield f"Recorded with settings that the plan has changed since: {', '.join(outdated)}."


def _run_columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The CSV has all of them; people see precision and skipped steps only where some run has unusual ones."""
    one_precision = {run.record.settings.precision for run in runs} <= {"fp32"}
    none_skipped = not any(run.skipped_steps for run in runs)
    return (
        Column("run", "run"),
        Column("plan", "plan", csv_only=True),
        Column("model", "model"),
        Column("image_px", "px", digits(0), csv_only=True),
        Column("batch", "batch", digits(0)),
        Column("optimizer", "rule"),
        Column("precision", "precision", csv_only=one_precision),
        Column("processes", "procs", digits(0)),
        Column("epochs", "epochs", digits(0)),
        Column("top1_percent", "top-1", digits(1)),
        Column("top5_percent", "top-5", digits(1)),
        Column("images_per_s", "img/s", digits(0)),
        Column("wall_s", "time", words.duration),
        Column("input_wait_percent", "wait", digits(1)),
        Column("skipped_steps", "skipped", digits(0), csv_only=none_skipped),
        Column("n", "n", digits(0)),
        Column("bn_images", "batch norm", digits(0), csv_only=True),
        Column("record", "record", csv_only=True),
    )


def _run_cells(run: Run) -> dict[str, Cell]:
    record = run.record
    return {
        "run": run.label,
        "plan": record.plan,
        "model": words.model_name(record.settings.model),
        "image_px": record.settings.model.image_px,
        "batch": record.settings.batch.global_batch,
        "optimizer": words.optimizer_name(record.settings.optimizer),
        "precision": record.settings.precision,
        "skipped_steps": run.skipped_steps,
        "processes": record.settings.processes,
        "epochs": record.final.epoch,
        "top1_percent": record.final.top1_percent,
        "top5_percent": record.final.top5_percent,
        "images_per_s": run.images_per_s,
        "wall_s": record.wall_s,
        "input_wait_percent": run.percent("input_wait_s"),
        "n": run.repeats,
        "bn_images": record.placement.bn_images,
        "record": run.path.as_posix(),
    }


def anchor(run: Run) -> str:
    """The place on the page where the run's provenance stands."""
    return run.anchor


def systems_table(_evidence: Evidence) -> Table:
    """Trainings of others, the paper's set off."""
    columns = (
        Column("who", "who"),
        Column("year", "year", lambda year: f"{year:.0f}"),
        Column("model", "model"),
        Column("batch", "batch", certain=True),
        Column("accelerators", "devices", digits(0), certain=True),
        Column("hardware", "hardware", certain=True),
        Column("minutes", "minutes", words.minutes, certain=True),
        Column("top1_percent", "top-1 %", digits(1), certain=True),
        Column("note", "note"),
        Column("source", "source"),
    )
    return Table("systems", columns, tuple(_system_row(system) for system in published().systems))


def _system_row(system: System) -> Row:
    names = ("who", "year", "model", "batch", "accelerators", "hardware", "minutes", "top1_percent", "note")
    cells: dict[str, Cell] = {name: getattr(system, name) for name in names}
    return Row(cells | {"source": system.cited()}, "published", emphasis=system.group == "paper")


BUILDERS: dict[str, Callable[[Evidence], Table]] = {
    "runs": runs_table,
    "compare": compare_table,
    "results": results_table,
    "ablations": ablations_table,
    "half-precision": half_precision_table,
    "systems": systems_table,
    "allreduce": allreduce_table,
    "steps": steps_table,
    "scaling-measured": measured_scaling_table,
    "scaling": scaling_table,
    "what-if": what_if_table,
    "profile": profile_table,
    "validation": validation_table,
    "p40": p40_table,
    "sensitivity": sensitivity_table,
    "data": data_table,
    "claims": claims_table,
    "sweeps": sweeps_table,
    "ledger": ledger_table,
}
