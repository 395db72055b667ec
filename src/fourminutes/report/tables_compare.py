"""Runs side by side: the settings in which they differ, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.figures_runs import TIME_PARTS
from fourminutes.report.table import Cell, Column, Row, Table

# What says nothing of how a run was trained.
_UNTOLD = ("description", "checkpoint", "lost_after_s")


def compare_table(evidence: Evidence) -> Table:
    """One column a run; a row each setting that is not the same in all of them, then accuracy, speed and time."""
    runs = evidence.runs
    columns = (Column("what", "what"), *(Column(run.label, run.label) for run in runs))
    if len(runs) < 2:
        return Table("compare", columns[:1], (), empty="There are no two recorded runs to compare.")
    rows = [*_settings(runs), *_outcomes(runs)]
    notes = (
        "The settings in which the runs differ, by their keys in the plan, then what came of them; times are shares of "
        "the run's time.",
    )
    return Table("compare", columns, tuple(rows), notes)


def _settings(runs: tuple[Run, ...]) -> Iterator[Row]:
    """The keys with different values; empty where a run has no such key."""
    flat = [dict(_flat(run.record.settings.model_dump(mode="json"))) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if not key.startswith(_UNTOLD))
    for key in keys:
        values = [settings.get(key) for settings in flat]
        if len(set(values)) > 1:
            yield _row(runs, key, values, "setting")


def _flat(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, str | None]]:
    """Every value by its dotted key, as text."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", None if value is None else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return words.number(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _outcomes(runs: tuple[Run, ...]) -> Iterator[Row]:
    finals = [run.record.final for run in runs]
    yield _row(runs, "top-1, %", [f"{final.top1_percent:.1f}" for final in finals])
    yield _row(runs, "top-5, %", [f"{final.top5_percent:.1f}" for final in finals])
    yield _row(runs, "images/s", [f"{run.images_per_s:,.0f}" for run in runs])
    yield _row(runs, "time", [words.duration(run.record.wall_s) for run in runs])
    for part, label, *_ in TIME_PARTS:
        yield _row(runs, f"{label}, %", [f"{run.percent(part):.1f}" for run in runs])


def _row(runs: tuple[Run, ...], what: str, values: list[str | None], group: str = "outcome") -> Row:
    cells: dict[str, Cell] = {"what": what}
    return Row(cells | {run.label: value for run, value in zip(runs, values, strict=True)}, group=group)
