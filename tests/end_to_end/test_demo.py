"""What a user finds after `make demo`, and what the next commands do."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from support.clone import Clone, Demo, planned_jobs

from fourminutes.plan import Plan, load_plan
from fourminutes.record import CommRecord, Manifest, RunRecord, ScaleRecord, ScalingRecord, read_record
from fourminutes.report.names import FIGURE_FORMATS, TABLE_FORMATS, figure_names, table_names

pytestmark = pytest.mark.timeout(1800)  # the demo itself is in the first test's time

NOTHING = "Nothing to be done"


@pytest.fixture(scope="session")
def plan(clone: Clone) -> Plan:
    return load_plan(clone.folder / "config" / "plans" / "demo.yaml")


@pytest.fixture(scope="session")
def runs(clone: Clone, plan: Plan) -> dict[str, RunRecord]:
    return {name: read_record(clone.folder / plan.run_record(name), RunRecord) for name in plan.runs}


@pytest.fixture(scope="session")
def clone(demo: Demo) -> Clone:
    return demo.clone


def dry_run(clone: Clone) -> dict[str, int]:
    """The jobs that a bare `snakemake` would run now, by rule."""
    done = clone.run("snakemake", "-n")
    assert done.returncode == 0, done.stderr
    return planned_jobs(done.stdout)


def test_the_screen_ends_with_the_main_table_and_the_paths(demo: Demo, plan: Plan):
    table, paths = demo.screen.split("tables: ")
    assert all(run in table for run in plan.runs)
    assert "results/demo/report.html" in paths


def test_every_table_and_figure_of_the_plan_is_there_and_not_empty(clone: Clone, plan: Plan):
    wanted = [f"tables/{name}.{ending}" for name in table_names(plan) for ending in TABLE_FORMATS]
    wanted += [f"figures/{name}.{ending}" for name in figure_names(plan) for ending in FIGURE_FORMATS]
    results = clone.folder / plan.results
    missing = [name for name in [*wanted, "report.html"] if not (results / name).stat().st_size]
    assert missing == []


def test_the_page_names_every_run_and_loads_nothing_from_outside(clone: Clone, plan: Plan):
    page = (clone.folder / plan.results / "report.html").read_text()
    assert all(run in page for run in plan.runs)
    assert not re.findall(r"""(?:src|<link[^>]*href)\s*=\s*["']https?:""", page)


def test_the_runs_cover_both_optimizers_both_networks_and_both_process_counts(runs: dict[str, RunRecord]):
    settings = [record.settings for record in runs.values()]
    assert {one.optimizer.kind for one in settings} == {"lars", "sgd"}
    assert {one.model.name for one in settings} == {"alexnet_bn", "resnet50"}
    assert {one.processes for one in settings} == {1, 2}


def test_every_validation_image_was_seen_once_in_every_epoch(clone: Clone, plan: Plan, runs: dict[str, RunRecord]):
    expected = read_record(clone.folder / plan.manifest, Manifest).splits["val"].samples
    assert {epoch.val_images for record in runs.values() for epoch in record.epochs} == {expected}


def test_every_run_learned_something(runs: dict[str, RunRecord]):
    chance_percent = 10
    assert {name for name, record in runs.items() if record.final.top1_percent < 2.5 * chance_percent} == set()


def test_the_parts_of_an_epoch_add_up_to_its_time(runs: dict[str, RunRecord]):
    for record in runs.values():
        for epoch in record.epochs:
            parts = epoch.times.model_dump()
            assert sum(parts.values()) - parts["total_s"] == pytest.approx(parts["total_s"], rel=1e-6)


def test_the_collectives_were_measured_on_four_processes(clone: Clone, plan: Plan):
    record = read_record(clone.folder / plan.comm_record, CommRecord)
    assert len(record.placement.hosts) == 4
    assert {timing.algorithm for timing in record.timings} >= {"ring", "hierarchical"}
    assert read_record(clone.folder / plan.scale_record, ScaleRecord).predictions


def test_the_series_was_measured_on_each_number_of_processes(clone: Clone, plan: Plan):
    records = [read_record(clone.folder / path, ScalingRecord) for path in plan.scaling_records]
    assert [len(record.placement.hosts) for record in records] == [1, 2]
    assert all(rate > 0 for record in records for rate in record.images_per_s)


def test_a_second_snakemake_does_nothing_and_says_so(clone: Clone):
    done = clone.run("snakemake")
    assert done.returncode == 0
    assert NOTHING in done.stdout + done.stderr


def test_dvc_records_what_is_there_and_a_second_repro_does_nothing(clone: Clone, plan: Plan):
    before = {path: path.stat().st_mtime_ns for path in _records(clone, plan)}
    first = clone.run("dvc", "repro")
    assert first.returncode == 0, first.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    second = clone.run("dvc", "repro")
    assert second.returncode == 0, second.stderr
    assert "Data and pipelines are up to date." in second.stdout + second.stderr


def test_a_comment_in_the_plan_and_a_reworded_rule_rerun_nothing(clone: Clone):
    changes = {
        "config/plans/demo.yaml": ("name: demo", "# Another comment.\nname: demo"),
        "workflow/rules/train.smk": ("fourminutes train --plan", "fourminutes  train   --plan"),
    }
    with_changes = _changed(clone, changes)
    try:
        assert dry_run(clone) == {}
    finally:
        _restore(with_changes)


def test_a_changed_recipe_reruns_its_run_and_what_is_drawn_from_it(clone: Clone, plan: Plan):
    run = next(iter(plan.runs))
    old = clone.folder / "config" / "plans" / "demo.yaml"
    with_changes = _changed(
        clone, {"config/plans/demo.yaml": (f"  {run}:\n", f"  {run}:\n    label_smoothing: 0.05\n")}
    )
    try:
        assert old.read_text().count("label_smoothing: 0.05") == 1
        assert dry_run(clone) == {"train_run": 1, "simulate": 1, "report": 1, "all": 1, "total": 4}
    finally:
        _restore(with_changes)


def _records(clone: Clone, plan: Plan) -> list[Path]:
    return [clone.folder / plan.manifest, *(clone.folder / plan.run_record(run) for run in plan.runs)]


def _changed(clone: Clone, changes: dict[str, tuple[str, str]]) -> dict[Path, str]:
    """Make the changes; what each file held before."""
    before = {clone.folder / name: (clone.folder / name).read_text() for name in changes}
    for path, text in before.items():
        old, new = changes[str(path.relative_to(clone.folder))]
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return before


def _restore(before: dict[Path, str]) -> None:
    for path, text in before.items():
        path.write_text(text)


def test_a_record_that_is_gone_empties_its_cells_and_trains_nothing(clone: Clone, plan: Plan):
    gone, aside = clone.folder / plan.run_record("alexnet-sgd-32"), clone.folder / "aside.json"
    drawn_before, rows_before = _drawn(clone, plan), _runs_table(clone, plan)
    page = f"{plan.results}/report.html"
    gone.rename(aside)
    try:
        printed = clone.must("snakemake", page, "--config", "plan=demo", "draw_only=true")
        assert "train_run" not in printed
        rows = _runs_table(clone, plan)
        assert {key for key, cell in rows.pop("alexnet-sgd-32").items() if cell} == {"run"}
        assert rows == {run: row for run, row in rows_before.items() if run != "alexnet-sgd-32"}
        drawn = _drawn(clone, plan)
        assert all(
            drawn[name] == drawn_before[name]
            for name in drawn
            if Path(name).stem in ("allreduce", "data", "steps", "systems", "p40", "sensitivity", "scaling")
            and name.startswith("tables/")
        )
    finally:
        aside.rename(gone)
    # Drawn again from all records, every file is as it was, byte for byte.
    clone.must("snakemake", page, "--config", "plan=demo", "draw_only=true")
    assert _drawn(clone, plan) == drawn_before


def _drawn(clone: Clone, plan: Plan) -> dict[str, bytes]:
    """Everything that the report consists of, by its place below the results."""
    results = clone.folder / plan.results
    files = [results / "report.html", *results.glob("tables/*"), *results.glob("figures/*")]
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in files}


def _runs_table(clone: Clone, plan: Plan) -> dict[str, dict[str, str]]:
    with (clone.folder / plan.results / "tables" / "runs.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}
