"""Metrics and courses for other programs, of the project's own records."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from fourminutes.plan import load_plan
from fourminutes.report.evidence import Evidence, gather
from fourminutes.report.metrics import epochs_csv, metrics_json

ROOT = Path(__file__).resolve().parents[2]


def evidence_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Evidence:
    monkeypatch.chdir(ROOT)
    return gather(load_plan(Path("config/plans") / f"{name}.yaml"))


def test_a_runs_metrics_are_those_of_its_last_epoch(monkeypatch: pytest.MonkeyPatch):
    evidence = evidence_of("small", monkeypatch)
    runs = json.loads(metrics_json(evidence))["runs"]
    assert runs.keys() == {run.label for run in evidence.runs} != set()
    for run in evidence.runs:
        final = run.record.final
        expected = {"top1_percent": final.top1_percent, "top5_percent": final.top5_percent, "val_loss": final.val_loss}
        expected |= {"train_loss": final.train_loss, "images_per_s": run.images_per_s, "wall_s": run.record.wall_s}
        assert runs[run.label] == pytest.approx(expected, rel=1e-5)


def test_a_sweeps_metrics_are_those_of_its_table(monkeypatch: pytest.MonkeyPatch):
    evidence = evidence_of("proxy", monkeypatch)
    sweeps = json.loads(metrics_json(evidence))["sweeps"]
    assert list(sweeps) == [arm.name for arm in evidence.arms] != []
    with (ROOT / "results" / "proxy" / "tables" / "sweeps.csv").open() as file:
        table = {row["sweep"]: float(row["top1_percent"]) for row in csv.DictReader(file)}
    assert {name: metrics["top1_percent"] for name, metrics in sweeps.items()} == pytest.approx(table, rel=1e-5)


def test_a_course_has_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch):
    evidence = evidence_of("small", monkeypatch)
    lines = list(csv.DictReader(io.StringIO(epochs_csv(evidence))))
    epochs = [(run.label, epoch) for run in evidence.runs for epoch in run.record.epochs]
    assert [(line["run"], int(line["epoch"])) for line in lines] == [(run, epoch.epoch) for run, epoch in epochs]
    assert [float(line["top1_percent"]) for line in lines] == pytest.approx([epoch.top1_percent for _, epoch in epochs])


@pytest.mark.parametrize("name", ["small", "proxy"])
def test_equal_records_give_the_bytes_that_are_in_git(name: str, monkeypatch: pytest.MonkeyPatch):
    evidence = evidence_of(name, monkeypatch)
    assert metrics_json(evidence) == (ROOT / "results" / name / "metrics.json").read_text()
    assert epochs_csv(evidence) == (ROOT / "results" / name / "epochs.csv").read_text()
