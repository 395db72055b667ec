"""What would change the recorded runs, as the report tells it."""

from pathlib import Path

import pytest
from comm_records import comm_record
from report_records import RUNS, plan_of, record_all

from fourminutes.record import write_record
from fourminutes.report.evidence import gather
from fourminutes.report.summary import lines
from fourminutes.report.tables_whatif import what_if_table
from fourminutes.scale.network import Link


def test_the_report_says_what_would_change_a_run_over_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(RUNS)
    record_all(plan)
    write_record(plan.comm_record, comm_record(Link(1e-4, 1e8)))
    rows = what_if_table(gather(plan)).rows
    told = [(row.cells["run"], row.cells["change"], row.origin) for row in rows]
    # One of the three runs has two processes.
    assert told[0] == ("resnet50-lars-1024-x2", "measured", "measured")
    assert {run for run, _, _ in told} == {"resnet50-lars-1024-x2"}
    assert ("resnet50-lars-1024-x2", "perfect overlap", "predicted") in told
    gains = {row.cells["change"]: row.cells["change_percent"] for row in rows}
    assert gains["as it is"] == 0
    assert 0 < gains["network x2"] < gains["network x10"] < gains["perfect overlap"]
    assert {row.anchor for row in rows} == {"record-made-resnet50-lars-1024-x2"}


def test_without_measured_collectives_nothing_is_said_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(RUNS)
    record_all(plan)
    plan.comm_record.unlink()
    assert what_if_table(gather(plan)).rows == ()


def test_the_summary_says_what_would_help_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(RUNS)
    record_all(plan)
    write_record(plan.comm_record, comm_record(Link(1e-4, 1e8)))
    evidence = gather(plan)
    gains = {row.cells["change"]: row.cells["change_percent"] for row in what_if_table(evidence).rows}
    told = lines(evidence)["Would help"]
    assert told.startswith("For resnet50-lars-1024-x2, over 2 processes, ")
    best = max(set(gains) - {"measured", "as it is", "network x2"}, key=gains.__getitem__)
    assert f"{best} would gain most of what was simulated, {gains[best]:+.0f} % of images/s" in told
    assert f"a network twice as fast {gains['network x2']:+.0f} %" in told
