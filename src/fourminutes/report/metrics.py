"""What came out, for programs such as DVC: the final numbers as JSON, the course of every run as CSV."""

from __future__ import annotations

import json
from typing import TypeAlias

from fourminutes.report.arms import Arm
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.table import Column, Row, Table, plain

Metrics: TypeAlias = "dict[str, str | int | float | None]"


def metrics_json(evidence: Evidence) -> str:
    """The final numbers of every run and of every sweep, by name; accuracies in percent, times in seconds."""
    runs = {run.label: _of_run(run) for run in evidence.runs}
    sweeps = {arm.name: _of_sweep(arm) for arm in evidence.arms}
    return json.dumps({"runs": runs, "sweeps": sweeps}, indent=1) + "\n"


def epochs_csv(evidence: Evidence) -> str:
    """One line an epoch of every run, in the order of the runs."""
    columns = (
        "run",
        "epoch",
        "steps",
        "rate",
        "train_loss",
        "val_loss",
        "top1_percent",
        "top5_percent",
        "images_per_s",
    )
    rows = tuple(
        Row({"run": run.label, **{key: getattr(epoch, key) for key in columns[1:]}})
        for run in evidence.runs
        for epoch in run.record.epochs
    )
    return Table("epochs", tuple(Column(key, key) for key in columns), rows).csv()


def _of_run(run: Run) -> Metrics:
    final = run.record.final
    return {
        "top1_percent": plain(final.top1_percent),
        "top5_percent": plain(final.top5_percent),
        "train_loss": plain(final.train_loss),
        "val_loss": plain(final.val_loss),
        "images_per_s": plain(run.images_per_s),
        "wall_s": plain(run.record.wall_s),
    }


def _of_sweep(arm: Arm) -> Metrics:
    """What the chosen value reaches on the pictures that chose nothing, over fresh seeds."""
    return {
        "value": plain(arm.record.chosen),
        "top1_percent": plain(arm.accuracy.mean) if arm.accuracy else None,
        "seeds": len(arm.seeds),
    }
