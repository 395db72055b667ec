"""Measured series: what plans accept, what comes of the records, and when these are outdated."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from comm_records import comm_record
from scaling_records import SPLIT, SPREAD, repeats, scaling_record
from sweep_records import PROVENANCE

from fourminutes.doctor.needs import jobs_of, needs_pictures
from fourminutes.errors import UserError
from fourminutes.plan import Plan, load_plan, series_settings, speed_hash
from fourminutes.record import outdated_records, write_record
from fourminutes.report import drawing
from fourminutes.report.evidence import gather
from fourminutes.report.figures_scaling import measured_scaling
from fourminutes.report.page import _origins as origins
from fourminutes.report.scalings import efficiency, in_a_line, middle
from fourminutes.report.summary import _measured_scaling
from fourminutes.report.tables_scaling import measured_scaling_table
from fourminutes.scale.network import Link

ROOT = Path(__file__).resolve().parents[2]
RUN: dict[str, Any] = {
    "processes": 2,
    "model": {"name": "resnet_small", "image_px": 32},
    "schedule": {"base_rate": 2.0, "warmup_epochs": 5},
    "batch": {"global_batch": 96, "per_device": 16},
    "reduce": {"trace_step": 3},
}
SERIES: dict[str, Any] = {"run": "big", "world_sizes": [1, 2, 4, 8], "processes_per_node": 4}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(here: Path, run: dict[str, Any] | None = None, **series: dict[str, Any]) -> Plan:
    data = {"dataset": "made", "source": {"kind": "synthetic"}}
    raw = {"name": "made", "data": data, "runs": {"big": RUN | (run or {})}, "scaling": series}
    path = here / "made.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_plan(path)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_weak_scaling_keeps_the_micro_batches_of_a_process(here: Path):
    plan = plan_of(here, weak=SERIES)
    settings = [series_settings(plan, "weak", size) for size in (1, 2, 4, 8)]
    assert [one.batch.global_batch for one in settings] == [48, 96, 192, 384]
    assert {one.batch.per_device for one in settings} == {16}
    assert {one.micro_batches for one in settings} == {3}


def test_strong_scaling_keeps_the_batch_and_takes_smaller_passes_where_the_share_is_smaller(here: Path):
    plan = plan_of(here, strong=SERIES | {"mode": "strong", "world_sizes": [1, 2, 3, 6, 12], "processes_per_node": 3})
    settings = [series_settings(plan, "strong", size) for size in (1, 2, 3, 6)]
    assert {one.batch.global_batch for one in settings} == {96}
    assert [one.micro_batches for one in settings] == [6, 3, 2, 1]
    assert series_settings(plan, "strong", 12).batch.per_device == 8


def test_processes_fill_nodes_or_share_one(here: Path):
    plan = plan_of(here, weak=SERIES)
    placed = [series_settings(plan, "weak", size) for size in (1, 2, 4, 8)]
    assert [(one.nodes, one.per_node) for one in placed] == [(1, 1), (1, 2), (1, 4), (2, 4)]


def test_what_is_timed_is_the_run_but_for_what_a_step_is_not(here: Path):
    plan = plan_of(here, weak=SERIES)
    settings, run = series_settings(plan, "weak", 2), plan.runs["big"]
    assert settings.reduce.trace_step is None
    assert settings.rates.base_rate < 1e-3
    same = ("model", "precision", "optimizer", "loader", "loss_scale", "compile", "threads", "batch")
    assert [getattr(settings, name) for name in same] == [getattr(run, name) for name in same]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run": "bik"}, "scaling.s.run: 'bik' is no run of this plan; did you mean 'big'?"),
        (
            {"mode": "strong", "world_sizes": [5], "processes_per_node": None},
            "5 processes: they cannot share batch.global_batch 96, which strong",
        ),
        (
            {"mode": "strong", "world_sizes": [4]},
            "4 processes: a share of 24 images is no multiple of batch.per_device",
        ),
        ({"mode": "strong", "world_sizes": [96], "processes_per_node": None}, "96 processes: batch.per_device: "),
        ({"world_sizes": [4, 6]}, "6 processes: they fill no whole number of nodes of 4"),
        ({"world_sizes": [2, 2]}, "scaling.s.world_sizes: [2, 2] must rise"),
        ({"world_sizes": [0, 2]}, "scaling.s.world_sizes: [0, 2] must rise, from 1 process"),
        ({"world_sizes": []}, "scaling.s.world_sizes"),
        ({"repeats": 6}, "scaling.s.repeats"),
        ({"step": 6}, "scaling.s.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(here: Path, changes: dict[str, Any], says: str):
    with pytest.raises(UserError) as refusal:
        plan_of(here, s=SERIES | changes)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_a_run_cannot_do_on_several_processes_is_refused(here: Path):
    with pytest.raises(UserError, match=r"scaling.s.world_sizes: 2 processes: run: cuda_graph: only for processes 1"):
        plan_of(here, {"processes": 1, "cuda_graph": True}, s=SERIES)


def test_an_unknown_series_is_named_with_the_likely_one(here: Path):
    with pytest.raises(UserError, match=r"has no series 'waek'; did you mean 'weak'\?"):
        series_settings(plan_of(here, weak=SERIES), "waek", 2)


def test_the_series_of_imagenet_are_ready_to_be_asked_for(here: Path):
    """They stand in the plan as a comment."""
    (here / "config").symlink_to(ROOT / "config")
    text = (ROOT / "config/plans/ilsvrc2012.yaml").read_text()
    first = text.index("# scaling:\n")
    block = text[first : text.index("\n\n", first)]
    path = here / "ilsvrc2012.yaml"
    path.write_text(text.replace(block, "\n".join(line.removeprefix("# ") for line in block.splitlines())))
    plan = load_plan(path)
    assert {series.run for series in plan.scaling.values()} == {"resnet50-lars-64k", "alexnet-lars-64k"}
    assert {series_settings(plan, name, 32).nodes for name in plan.scaling} == {4}


# --- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "k"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (17, 5), (25, 8)])
def test_the_interval_of_a_median_goes_between_the_ranks_that_tables_have(count: int, k: int):
    values = [float(value) for value in range(1, count + 1)]
    assert (middle(values).low, middle(values).high) == (k, count + 1 - k)
    assert middle(values).value == statistics.median(values)


@pytest.mark.parametrize("count", [7, 15])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int):
    drawn = np.random.default_rng(0).exponential(size=(4000, count))
    held = [one.low <= np.log(2) <= one.high for one in map(middle, drawn.tolist())]
    assert 0.95 <= statistics.fmean(held) < 0.99


def test_a_repeats_rate_counts_every_second_of_it(here: Path):
    """A step that waited long for its input makes the repeat slower, though it is one of many."""
    record = scaling_record(plan_of(here, weak=SERIES), "weak", 2, repeats=repeats([1.0] * 7))
    assert record.images_per_s == pytest.approx([96.0] * 7)
    assert record.repeats[0].steps_s == (0.5, 1.5)


def test_efficiencies_are_those_worked_out_by_hand(here: Path):
    plan = plan_of(here, weak=SERIES)
    for size, step_s in {1: 1.0, 2: 1.25, 4: 1.6, 8: 2.0}.items():
        write_record(plan.scaling_record("weak", size), scaling_record(plan, "weak", size, step_s=step_s, per_node=4))
    rows = {row.cells["processes"]: row.cells for row in measured_scaling_table(gather(plan)).rows}
    assert [rows[size]["images_per_s"] for size in (1, 2, 4, 8)] == pytest.approx([48, 76.8, 120, 192])
    assert [rows[size]["efficiency_percent"] for size in (1, 2, 4, 8)] == pytest.approx([100, 80, 62.5, 50])
    assert [rows[size]["nodes"] for size in (1, 2, 4, 8)] == [1, 1, 1, 2]
    assert {size: cells.get("node_efficiency_percent") for size, cells in rows.items()} == {
        1: None,
        2: None,
        4: 100,
        8: pytest.approx(80),
    }
    assert [rows[size]["step_ms"] for size in (1, 2)] == pytest.approx([1000, 1250])
    assert rows[2]["images_per_s_low"] == pytest.approx(76.8 / max(SPREAD))
    assert rows[2]["images_per_s_high"] == pytest.approx(76.8 / min(SPREAD))
    # The least rate of the one over the most of the other, and the reverse.
    assert rows[2]["efficiency_percent_low"] == pytest.approx(80 * min(SPREAD) / max(SPREAD))
    assert rows[2]["efficiency_percent_high"] == pytest.approx(80 * max(SPREAD) / min(SPREAD))
    names = {"input": "input_wait_s", "comm": "exposed_reduce_s", "update": "optimizer_s"}
    for name in ("input", "forward", "backward", "comm", "update", "other"):
        assert rows[8][f"{name}_percent"] == pytest.approx(100 * SPLIT[names.get(name, f"{name}_s")])
    assert rows[8]["least_comm_percent"] == pytest.approx(6.25)


def test_nodes_are_compared_only_with_one_as_full(here: Path):
    plan = plan_of(here, weak=SERIES | {"processes_per_node": None, "world_sizes": [3, 4, 6, 8]})
    for size in (3, 4, 6, 8):  # six on two nodes of four are four and two
        write_record(plan.scaling_record("weak", size), scaling_record(plan, "weak", size, per_node=4))
    known = {one.record.processes: one.of_node and one.of_node.value for one in gather(plan).scalings}
    assert known == {3: None, 4: 100, 6: None, 8: 100}


def test_strong_scaling_is_compared_by_the_same_batch(here: Path):
    plan = plan_of(here, strong=SERIES | {"mode": "strong", "world_sizes": [1, 2]})
    one, two = (scaling_record(plan, "strong", size, step_s=step_s) for size, step_s in ((1, 1.0), (2, 0.625)))
    assert efficiency(two, one, 2).value == pytest.approx(80)
    for record in (one, two):
        write_record(plan.scaling_record("strong", record.processes), record)
    assert [cell.of_process.value for cell in gather(plan).scalings if cell.of_process] == pytest.approx([100, 80])


@pytest.mark.parametrize("other", ["device", "precision", "steps"])
def test_what_was_measured_in_another_way_is_no_base(here: Path, other: str):
    plan = plan_of(here, weak=SERIES)
    one = scaling_record(plan, "weak", 1)
    changed = {
        "device": {"placement": one.placement.model_copy(update={"device": "NVIDIA H100"})},
        "precision": {"settings": one.settings.model_copy(update={"precision": "bf16"})},
        "steps": {"measured": plan.scaling["weak"].model_copy(update={"steps": 5})},
    }[other]
    write_record(plan.scaling_record("weak", 1), one.model_copy(update=changed))
    write_record(plan.scaling_record("weak", 2), scaling_record(plan, "weak", 2))
    assert [cell.of_process is None for cell in gather(plan).scalings] == [False, True]


def test_real_training_is_held_against_its_prediction_by_hand(here: Path):
    plan = plan_of(here, weak=SERIES)
    for size, step_s in {1: 1.0, 2: 1.25}.items():
        write_record(plan.scaling_record("weak", size), scaling_record(plan, "weak", size, step_s=step_s))
    write_record(plan.comm_record, comm_record(Link(0.0, 1e15)))
    one, two = measured_scaling_table(gather(plan)).rows
    assert "predicted_ms" not in one.cells
    # All of a step on one process but its wait for gradients, 0.125 s; messages take no time.
    assert two.cells["predicted_ms"] == pytest.approx(875, rel=1e-6)
    assert two.cells["off_percent"] == pytest.approx(100 * (0.875 / 1.25 - 1), rel=1e-6)


def test_without_measured_collectives_nothing_is_predicted(here: Path):
    plan = plan_of(here, weak=SERIES)
    for size in (1, 2):
        write_record(plan.scaling_record("weak", size), scaling_record(plan, "weak", size))
    assert [row.cells.get("predicted_ms") for row in measured_scaling_table(gather(plan)).rows] == [None, None]


# --- the report -----------------------------------------------------------------------------------------------------


def test_a_series_without_records_says_so(here: Path):
    table = measured_scaling_table(gather(plan_of(here, weak=SERIES)))
    assert table.footnotes() == (table.empty,)
    assert "No series has been measured at several numbers of processes yet" in drawn(here, weak=SERIES)


def test_the_efficiency_of_nodes_is_shown_only_where_there_are_several(here: Path):
    plan = plan_of(here, weak=SERIES)
    write_record(plan.scaling_record("weak", 4), scaling_record(plan, "weak", 4))
    shown = [column.key for column in measured_scaling_table(gather(plan)).shown]
    assert "node_efficiency_percent" not in shown
    header = next(csv.reader(io.StringIO(measured_scaling_table(gather(plan)).csv())))
    assert "node_efficiency_percent_low" in header


def test_what_disturbs_a_measurement_stands_below_the_table(here: Path):
    plan = plan_of(here, weak=SERIES)
    record = scaling_record(plan, "weak", 4, skipped_steps=2)
    on_cpu = {"placement": record.placement.model_copy(update={"device": "cpu"}), "provenance": PROVENANCE}
    write_record(plan.scaling_record("weak", 4), record.model_copy(update=on_cpu))
    notes = " ".join(measured_scaling_table(gather(plan_of(here, {"precision": "bf16"}, weak=SERIES))).notes)
    assert "skipped for an overflow, and are shorter: weak on 4." in notes
    assert "processes took turns: weak on 4 processes." in notes
    assert "the plan has changed since: weak on 4." in notes


def drawn(here: Path, **series: dict[str, Any]) -> str:
    return drawing.draw(measured_scaling, gather(plan_of(here, **series)))["svg"].decode()


def test_weak_and_strong_series_are_drawn_apart_with_their_intervals(here: Path):
    plan = plan_of(here, a=SERIES, b=SERIES | {"mode": "strong", "world_sizes": [1, 2]})
    for path, series, size in ((plan.scaling_record(name, size), name, size) for name in "ab" for size in (1, 2)):
        write_record(path, scaling_record(plan, series, size))
    figure = measured_scaling(gather(plan))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a (weak)", "b (strong)", "ideal"]
    styles = [handle.get_linestyle() for handle in legend.get_lines()]
    assert styles[0] != styles[1]
    bars = figure.axes[1].containers
    assert [len(container[2][0].get_segments()) for container in bars] == [2, 2]


def test_the_page_tells_where_a_series_comes_from(here: Path):
    plan = plan_of(here, weak=SERIES)
    write_record(plan.scaling_record("weak", 4), scaling_record(plan, "weak", 4))
    evidence = gather(plan)
    (origin,) = origins(evidence)
    assert origin.anchor == measured_scaling_table(evidence).rows[0].anchor
    assert (origin.label, origin.path) == ("weak, 4 processes", "results/made/scaling/weak-4.json")
    assert ("command", "fourminutes scale measure --series weak") in origin.lines


def test_a_plan_that_only_draws_takes_the_series_that_its_globs_match(here: Path):
    plan = plan_of(here, weak=SERIES)
    for size in (1, 2):
        write_record(plan.scaling_record("weak", size), scaling_record(plan, "weak", size))
    path = here / "draws.yaml"
    path.write_text("name: draws\nreport: {scaling_records: [results/made/scaling/*.json]}\n")
    assert [one.record.processes for one in gather(load_plan(path)).scalings] == [1, 2]


def test_the_summary_tells_what_the_most_processes_keep_and_how_sure_that_is(here: Path):
    plan = plan_of(here, weak=SERIES, worse=SERIES | {"steps": 5})
    for name, slower in (("weak", 1.25), ("worse", 2.0)):
        for size in (1, 2, 4):
            step_s = 1.0 if size == 1 else slower
            write_record(plan.scaling_record(name, size), scaling_record(plan, name, size, step_s=step_s))
    told = "Measured on 4 processes, weak keeps 80 % (95 %: 53 to 120) of 4 times the rate of one."
    assert _measured_scaling(gather(plan)) == [told]
    assert _measured_scaling(gather(plan_of(here, weak=SERIES | {"world_sizes": [1]}))) == []


def test_a_line_tells_rate_interval_and_split(here: Path):
    line = in_a_line(scaling_record(plan_of(here, weak=SERIES), "weak", 2))
    assert line.startswith("weak on 2 processes: 96.0 images/s (95 %: 80.0 to 120.0), 1,000.0 ms a step: input 5.0 %")
    assert line.endswith("forward 25.0 %, backward 50.0 %, comm 12.5 %, update 5.5 %, other 2.0 %")


def test_the_doctor_knows_the_jobs_of_a_series_and_what_they_read(here: Path):
    jobs = {job.name: job for job in jobs_of(plan_of(here, weak=SERIES))}
    assert {jobs[f"weak on {size}"].rule for size in (1, 2, 4, 8)} == {"measure_scaling"}
    assert (jobs["weak on 8"].nodes, jobs["weak on 8"].per_node, jobs["weak on 8"].cores) == (2, 4, 3)
    for kind, reads in (("real", True), ("synthetic", False)):
        plan = plan_of(here, weak=SERIES | {"input": kind})
        for path in (plan.manifest, plan.run_record("big")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert needs_pictures(plan) == reads


# --- outdated records -----------------------------------------------------------------------------------------------


def recorded(here: Path) -> Path:
    plan = plan_of(here, weak=SERIES)
    write_record(plan.scaling_record("weak", 2), scaling_record(plan, "weak", 2))
    return plan.scaling_record("weak", 2)


@pytest.mark.parametrize(
    "run",
    [
        {"seed": 3, "description": "another", "lost_after_s": 11.0},
        {"epochs": 10, "schedule": {"base_rate": 1.0}},
        {"checkpoint": {"every_steps": 3}, "evaluation": {"recalibration_images": 5}, "reduce": {"trace_step": None}},
    ],
)
def test_what_changes_no_step_makes_no_series_outdated(here: Path, run: dict[str, Any]):
    recorded(here)
    assert outdated_records(plan_of(here, run, weak=SERIES | {"description": "another", "world_sizes": [2]})) == ()


@pytest.mark.parametrize(
    ("run", "series"),
    [
        ({"precision": "bf16"}, {}),
        ({"loader": {"prefetch_batches": 5}}, {}),
        ({"reduce": {"lanes": 1}}, {}),
        ({"batch": {"global_batch": 192, "per_device": 16}}, {}),
        ({}, {"steps": 5}),
        ({}, {"input": "synthetic"}),
        ({}, {"processes_per_node": 1}),
    ],
)
def test_what_may_change_a_step_makes_its_series_outdated(here: Path, run: dict[str, Any], series: dict[str, Any]):
    path = recorded(here)
    assert outdated_records(plan_of(here, run, weak=SERIES | series)) == (path,)


def test_a_size_that_is_no_longer_asked_for_is_passed_over(here: Path):
    recorded(here)
    assert outdated_records(plan_of(here, weak=SERIES | {"world_sizes": [1, 4]})) == ()


def test_the_hash_of_a_step_is_the_same_after_a_record_was_written_and_read(here: Path):
    plan = plan_of(here, weak=SERIES)
    recorded(here)
    (one,) = gather(plan).scalings
    assert speed_hash(one.record.settings) == speed_hash(series_settings(plan, "weak", 2))
    assert not one.outdated
