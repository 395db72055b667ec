"""The paper's own tables, with the recorded runs beside what is published."""

from __future__ import annotations

from collections.abc import Iterator

from fourminutes.comm.fit import cost_terms
from fourminutes.facts import Text
from fourminutes.report import words
from fourminutes.report.evidence import ILSVRC2012_CLASSES, Evidence, Run, Wanted
from fourminutes.report.matches import matching
from fourminutes.report.precisions import Rate, groups
from fourminutes.report.published import Ablation, Headline, StepCount, published
from fourminutes.report.repeats import Mean, mean_of, rate_mean, repeats_of, top1_mean
from fourminutes.report.table import Cell, Column, Row, Table, digits

_INTERVAL_NOTE = (
    "mean and ±: over n recorded runs of one recipe with other seeds on alike hardware, ± the half width of the 95 % "
    "t-interval; of one run there is none."
)


def results_table(evidence: Evidence) -> Table:
    """The paper's headline, then the recorded runs; one that is expected and not recorded keeps its row, empty."""
    paper = tuple(Row(_headline_cells(line), "published") for line in published().headline)
    own = tuple(_result_row(slot, evidence) for slot in evidence.slots)
    return Table("results", _result_columns(_any_repeated(evidence)), (*paper, *own), tuple(_result_notes(evidence)))


def _any_repeated(evidence: Evidence) -> bool:
    return any(len(repeats_of(run, evidence.runs)) > 1 for run in evidence.runs)


def _result_columns(repeated: bool) -> tuple[Column, ...]:
    """The CSV has all of them; people see means only where some recipe was repeated."""
    return (
        Column("origin", "origin"),
        Column("model", "model"),
        Column("classes", "classes", digits(0)),
        Column("batch", "batch", digits(0), certain=True),
        Column("epochs", "epochs", digits(0), certain=True),
        Column("hardware", "hardware", certain=True),
        Column("minutes", "minutes", words.minutes, certain=True),
        Column("top1_percent", "top-1 %", digits(1), certain=True),
        Column("images_per_s", "images/s", digits(0), certain=True),
        Column("n", "n", digits(0), csv_only=not repeated),
        Column("top1_mean_percent", "mean", digits(2), csv_only=not repeated),
        Column("top1_half_width_percent", "±", digits(2), csv_only=not repeated),
        Column("images_per_s_mean", "mean images/s", digits(0), csv_only=not repeated),
        Column("images_per_s_half_width", "±", digits(0), csv_only=not repeated),
        Column("source", "source"),
    )


def _result_notes(evidence: Evidence) -> Iterator[str]:
    speedups = " and ".join(f"{row.factor.value:.0f}× ({row.model})" for row in published().speedups)
    yield f"With its all-reduce the paper trains up to {speedups} faster than with NCCL's alone, on 1,024 P40 (ABS)."
    if _any_repeated(evidence):
        yield _INTERVAL_NOTE
    for slot in evidence.wanted:
        yield f"{slot.label} (plan {slot.plan}) has no record yet: {slot.how}."


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


def _result_row(slot: Run | Wanted, evidence: Evidence) -> Row:
    if isinstance(slot, Wanted):
        return Row({"origin": slot.label})
    return Row(_result_cells(slot) | _repeat_cells(slot, evidence), anchor=slot.anchor)


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


def _repeat_cells(run: Run, evidence: Evidence) -> dict[str, Cell]:
    """The means over the run's repeats, itself among them; of one run its own value says all."""
    top1, rate = top1_mean(run, evidence.runs), rate_mean(run, evidence.runs)
    if top1.half_width is None:
        return {"n": top1.n}
    return {
        "n": top1.n,
        "top1_mean_percent": top1.value,
        "top1_half_width_percent": top1.half_width,
        "images_per_s_mean": rate.value,
        "images_per_s_half_width": rate.half_width,
    }


def ablations_table(evidence: Evidence) -> Table:
    """The paper's ablations; a recorded run stands beside a row only if it does the same on ImageNet."""
    columns = (
        Column("model", "model"),
        Column("change", "technique"),
        Column("batch", "batch", digits(0), certain=True),
        Column("epochs", "epochs", digits(0), certain=True),
        Column("published", "published top-1 %", digits(1), certain=True),
        Column("own", "recorded", digits(1)),
        Column("own_half_width", "±", digits(2)),
        Column("n", "n", digits(0)),
        Column("own_run", "run"),
        Column("wanted", "wanted", csv_only=True),
        Column("source", "source"),
        Column("note", "note"),
    )
    rows = tuple(_ablation_row(row, evidence) for row in published().ablations)
    return Table("ablations", columns, rows, tuple(_ablation_notes(evidence)))


def _ablation_row(row: Ablation, evidence: Evidence) -> Row:
    runs = matching(row, evidence)
    mean = _top1(runs)
    cells: dict[str, Cell] = {
        "model": row.model,
        "change": row.change,
        "batch": row.batch,
        "epochs": row.epochs,
        "published": row.top1_percent,
        "own": mean.value if mean else None,
        "own_half_width": mean.half_width if mean else None,
        "n": mean.n if mean else None,
        "own_run": ", ".join(run.label for run in runs) or None,
        "wanted": None if runs else str(row.fill),
        "source": row.cited(),
        "note": row.note,
    }
    return Row(cells, "published", runs[0].anchor if runs else None)


def _top1(runs: tuple[Run, ...]) -> Mean | None:
    return mean_of([run.record.final.top1_percent for run in runs]) if runs else None


def _ablation_notes(evidence: Evidence) -> Iterator[str]:
    yield "recorded: the mean over n runs with other seeds, ± the half width of its 95 % t-interval."
    wanted: dict[str, list[str]] = {}
    for row in published().ablations:
        if not matching(row, evidence):
            wanted.setdefault(row.model, []).append(f"{row.change}: {row.fill}")
    yield from (f"Without a record, {model}: {'; '.join(rows)}." for model, rows in wanted.items())


def half_precision_table(evidence: Evidence) -> Table:
    """The paper's rate in single and half precision, then recorded runs that differ in precision alone."""
    columns = (
        Column("origin", "origin"),
        Column("model", "model"),
        Column("precision", "precision"),
        Column("hardware", "hardware"),
        Column("batch", "batch a device", digits(0), certain=True),
        Column("images_per_s", "images/s a device", digits(1), certain=True),
        Column("half_width", "±", digits(1)),
        Column("ratio", "times fp32", digits(2), certain=True),
        Column("n", "n", digits(0)),
        Column("source", "source"),
    )
    own = groups(evidence)
    rows = tuple(Row(_precision_cells(rate), anchor=rate.anchor) for one in own for rate in one)
    return Table("half-precision", columns, _published_precisions() + rows, tuple(_precision_notes(own)))


def _published_precisions() -> tuple[Row, ...]:
    row = published().half_precision
    common: dict[str, Cell] = {
        "origin": "paper",
        "model": row.model,
        "hardware": row.accelerator,
        "batch": row.batch,
        "source": row.source,
    }
    return (
        Row(common | {"precision": "fp32", "images_per_s": row.fp32_images_per_s}, "published"),
        Row(common | {"precision": "half", "images_per_s": row.half_images_per_s, "ratio": row.ratio}, "published"),
    )


def _precision_cells(rate: Rate) -> dict[str, Cell]:
    mean = rate.images_per_s
    return {
        "origin": rate.label,
        "model": words.model_name(rate.settings.model),
        "precision": rate.settings.precision,
        "hardware": rate.hardware,
        "batch": rate.settings.batch.per_device,
        "images_per_s": mean.value if mean else None,
        "half_width": mean.half_width if mean else None,
        "ratio": rate.ratio,
        "n": mean.n if mean else None,
        "source": rate.source,
    }


def _precision_notes(own: tuple[tuple[Rate, ...], ...]) -> Iterator[str]:
    yield f"Published: {published().half_precision.note}."
    if not own:
        yield (
            "No two recorded runs or series differ in their precision alone. A run beside another of equal settings, "
            "one with precision: fp32 and one with half, amp or bf16, would stand here."
        )
    else:
        yield (
            "Runs and series stand here where all but their precision is equal; means, n: runs with other seeds, or "
            "repeats of a series, ± the half width of their mean's 95 % t-interval. Repeats are of one start: what "
            "differs from start to start is not in them."
        )


def steps_table(_evidence: Evidence) -> Table:
    """Step counts of the two all-reduce algorithms, as published and by the cost model's equation."""
    columns = (
        Column("processes", "processes", digits(0)),
        Column("group", "group", digits(0)),
        Column("ring", "ring", digits(0), certain=True),
        Column("ring_computed", "computed", digits(0)),
        Column("hierarchical", "hierarchical", digits(0), certain=True),
        Column("hierarchical_computed", "computed", digits(0)),
        Column("agrees", "agrees"),
    )
    rows = tuple(Row(_step_cells(row), "published") for row in published().steps)
    note = (
        "ring 2(p-1), hierarchical 4(k-1) + 2(p/k-1), p processes in groups of k; the paper's own k is unconfirmed. "
        "computed: the steps that this project's cost model counts."
    )
    return Table("steps", columns, rows, (note,))


def _step_cells(row: StepCount) -> dict[str, Cell]:
    ring, _ = cost_terms("ring", row.accelerators, row.accelerators)
    hierarchical, _ = cost_terms("hierarchical", row.accelerators, row.group)
    return {
        "processes": row.accelerators,
        "group": row.group,
        "ring": row.ring,
        "ring_computed": ring,
        "hierarchical": row.hierarchical,
        "hierarchical_computed": hierarchical,
        "agrees": "yes" if (row.ring.value, row.hierarchical.value) == (ring, hierarchical) else "no",
    }
