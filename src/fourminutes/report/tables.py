"""The report's tables, each a function of the evidence and the published numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fourminutes.report import words
from fourminutes.report.evidence import ILSVRC2012_CLASSES, Evidence, Run
from fourminutes.report.published import Ablation, Headline, System, Text, published
from fourminutes.report.table import Cell, Column, Row, Table, digits
from fourminutes.report.tables_claims import claims_table, ledger_table, sweeps_table
from fourminutes.report.tables_measured import allreduce_table, data_table, scaling_table
from fourminutes.report.tables_p40 import p40_table, sensitivity_table
from fourminutes.report.tables_scaling import measured_scaling_table
from fourminutes.report.tables_validation import validation_table


def runs_table(evidence: Evidence) -> Table:
    """One row a run; a run of the plan without a record keeps its row, empty."""
    missing = tuple(Row({"run": name}) for name in evidence.missing)
    rows = tuple(Row(_run_cells(run), anchor=anchor(run)) for run in evidence.runs)
    return Table("runs", _run_columns(evidence.runs), rows + missing, tuple(_run_notes(evidence)))


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
    return f"record-{run.record.plan}-{run.record.run}"


def results_table(evidence: Evidence) -> Table:
    """The paper's headline, then the recorded runs."""
    columns = (
        Column("origin", "origin"),
        Column("model", "model"),
        Column("classes", "classes", digits(0)),
        Column("batch", "batch", digits(0), certain=True),
        Column("epochs", "epochs", digits(0), certain=True),
        Column("hardware", "hardware", certain=True),
        Column("minutes", "minutes", words.minutes, certain=True),
        Column("top1_percent", "top-1 %", digits(1), certain=True),
        Column("images_per_s", "images/s", digits(0), certain=True),
        Column("source", "source"),
    )
    paper = tuple(Row(_headline_cells(line), "published") for line in published().headline)
    own = tuple(Row(_result_cells(run), anchor=anchor(run)) for run in evidence.runs)
    speedups = " and ".join(f"{row.factor.value:.0f}× ({row.model})" for row in published().speedups)
    notes = (
        f"With its all-reduce the paper trains up to {speedups} faster than with NCCL's alone, on 1,024 P40 (ABS).",
    )
    return Table("results", columns, (*paper, *own), notes)


def _headline_cells(line: Headline) -> dict[str, Cell]:
    return {
        "origin": "paper" if line.accelerators else line.note,
        "model": line.model,
        "classes": ILSVRC2012_CLASSES,
        "batch": line.batch,
        "epochs": line.epochs,
        "hardware": _devices(line),
        "minutes": line.minutes,
        "top1_percent": line.top1_percent,
        "images_per_s": line.images_per_s,
        "source": line.cited(),
    }


def _devices(line: Headline) -> Text | None:
    """Number and kind of the devices, as sure as their number."""
    count = line.accelerators
    if count is None:
        return None
    return Text(value=f"{count.value:,.0f} × {line.accelerator}", certainty=count.certainty, source=count.source)


def _result_cells(run: Run) -> dict[str, Cell]:
    record = run.record
    return {
        "origin": run.label,
        "model": words.model_name(record.settings.model),
        "classes": record.class_count,
        "batch": record.settings.batch.global_batch,
        "epochs": record.final.epoch,
        "hardware": words.hardware_brief(record.placement, record.provenance),
        "minutes": record.wall_s / 60,
        "top1_percent": record.final.top1_percent,
        "images_per_s": run.images_per_s,
        "source": "record",
    }


def ablations_table(evidence: Evidence) -> Table:
    """The paper's ablations; a recorded run stands beside a row only if it does the same on ImageNet."""
    columns = (
        Column("model", "model"),
        Column("change", "technique"),
        Column("batch", "batch", digits(0), certain=True),
        Column("epochs", "epochs", digits(0), certain=True),
        Column("quantity", "quantity"),
        Column("published", "published", digits(1), certain=True),
        Column("own", "recorded", digits(1)),
        Column("own_run", "run"),
        Column("unit", "unit", csv_only=True),
        Column("source", "source"),
        Column("note", "note"),
    )
    rows = tuple(_ablation_row(row, evidence) for row in published().ablations)
    return Table("ablations", columns, rows)


def _ablation_row(row: Ablation, evidence: Evidence) -> Row:
    run = next((run for run in evidence.runs if _matches(row, run)), None)
    cells: dict[str, Cell] = {
        "model": row.model,
        "change": row.change,
        "batch": row.batch,
        "epochs": row.epochs,
        "quantity": f"{row.quantity}, {row.unit}",
        "published": row.value,
        "own": run.record.final.top1_percent if run else None,
        "own_run": run.label if run else None,
        "unit": row.unit,
        "source": row.cited(),
        "note": row.note,
    }
    return Row(cells, "published", anchor(run) if run else None)


def _matches(row: Ablation, run: Run) -> bool:
    """Whether `run` does what the row describes: same network, batch, rule and decay, on ImageNet."""
    settings, match = run.record.settings, row.match
    if match is None or row.batch is None or not run.on_imagenet:
        return False
    spared = {"bias", "norm"} if match.no_decay else set()
    return (
        settings.model.name == match.model
        and settings.optimizer.kind == match.optimizer
        and not settings.optimizer.nesterov
        and set(settings.optimizer.no_decay) == spared
        and settings.batch.global_batch == row.batch.value
        and (row.epochs is None or settings.epochs == row.epochs.value)
    )


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


def steps_table(_evidence: Evidence) -> Table:
    """Step counts of the two all-reduce algorithms."""
    columns = (
        Column("processes", "processes", digits(0)),
        Column("group", "group", digits(0)),
        Column("ring", "ring", digits(0), certain=True),
        Column("hierarchical", "hierarchical", digits(0), certain=True),
    )
    rows = tuple(
        Row(
            {"processes": row.accelerators, "group": row.group, "ring": row.ring, "hierarchical": row.hierarchical},
            "published",
        )
        for row in published().steps
    )
    note = "ring 2(p-1), hierarchical 4(k-1) + 2(p/k-1), p processes in groups of k; the paper's own k is unconfirmed."
    return Table("steps", columns, rows, (note,))


BUILDERS: dict[str, Callable[[Evidence], Table]] = {
    "runs": runs_table,
    "results": results_table,
    "ablations": ablations_table,
    "systems": systems_table,
    "allreduce": allreduce_table,
    "steps": steps_table,
    "scaling-measured": measured_scaling_table,
    "scaling": scaling_table,
    "validation": validation_table,
    "p40": p40_table,
    "sensitivity": sensitivity_table,
    "data": data_table,
    "claims": claims_table,
    "sweeps": sweeps_table,
    "ledger": ledger_table,
}
