"""The paper's tables beside recorded runs, with their values worked out by hand."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pydantic import ValidationError
from report_records import ROOT, plan_of, run_record, settings

from fourminutes.plan import ModelPlan, OptimizerPlan, Plan, RunPlan, load_plan
from fourminutes.record import RunRecord, write_record
from fourminutes.report.evidence import Run, gather
from fourminutes.report.published import Ablation, StepCount, published
from fourminutes.report.repeats import mean_of
from fourminutes.report.tables import BUILDERS
from fourminutes.report.tables_paper import _step_cells


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def full(model: str = "resnet50", *, bn_after_pool5: bool = True, **changes: Any) -> RunPlan:
    """One of the paper's runs, or nearly: its network, batch, rule and length."""
    alexnet = ModelPlan(name="alexnet_bn", bn_after_pool5=bn_after_pool5)
    network = {"resnet50": (ModelPlan(), 90), "alexnet_bn": (alexnet, 95)}[model]
    chosen = settings(batch=65536, processes=32, epochs=network[1])
    return chosen.model_copy(update={"model": network[0], "optimizer": OptimizerPlan()} | changes)


def one(precision: str, **changes: Any) -> RunPlan:
    """A run on one process."""
    return full(processes=1, precision=precision, **changes)


#: Runs with their final top-1 in percent and their rate in images/s.
RECORDED: dict[str, tuple[RunPlan, float, float]] = {
    "lars": (full(), 75.9, 60_000),
    "lars-1": (full(seed=1), 76.1, 61_000),
    "lars-2": (full(seed=2), 75.6, 60_500),
    "decay": (full(optimizer=OptimizerPlan(no_decay=())), 72.5, 60_000),
    "alexnet": (full("alexnet_bn"), 58.9, 160_000),
    "alexnet-plain": (full("alexnet_bn", bn_after_pool5=False), 57.0, 160_000),
    "one-half": (one("half"), 76.5, 2_600),
    "one-fp32": (one("fp32"), 76.4, 1_000),
}


def record_of(name: str) -> RunRecord:
    chosen, top1, rate = RECORDED[name]
    return run_record(name, "made", chosen, top1, rate).model_copy(update={"class_count": 1000})


@pytest.fixture
def plan() -> Plan:
    """A plan of these runs, all of them recorded."""
    made = plan_of({name: chosen for name, (chosen, _, _) in RECORDED.items()})
    for name in RECORDED:
        write_record(made.run_record(name), record_of(name))
    return made


def csv(name: str, plan: Plan) -> pd.DataFrame:
    """The table as programs read it, every cell a text; an empty one is empty."""
    return pd.read_csv(io.StringIO(BUILDERS[name](gather(plan)).csv()), dtype=str, keep_default_na=False)


def numbers(cells: Any) -> list[float | None]:
    """The cells as numbers, None for an empty one."""
    return [float(cell) if cell else None for cell in cells]


def test_a_mean_has_the_t_interval_of_its_sample() -> None:
    # s = 1 and t = 4.302653 with two degrees of freedom: 4.302653 / √3. Then s = √8 and t = 12.706205, over √2.
    three, two = mean_of([79.0, 80.0, 81.0]), mean_of([10.0, 14.0])
    assert (three.n, three.value, three.half_width) == (3, 80, pytest.approx(2.484138, rel=1e-6))
    assert (two.n, two.value, two.half_width) == (2, 12, pytest.approx(25.41241, rel=1e-6))


def test_one_value_has_no_interval() -> None:
    single = mean_of([75.8])
    assert (single.n, single.value, single.half_width) == (1, 75.8, None)


def test_the_results_hold_mean_and_interval_over_seeds(plan: Plan) -> None:
    rows = csv("results", plan).set_index("origin")
    for name in ("lars", "lars-1", "lars-2"):
        row = rows.loc[name]
        # (75.9 + 76.1 + 75.6) / 3, s = 0.251661; s = 500 of the rates; both by 4.302653 / √3.
        assert (row.n, float(row.top1_mean_percent)) == ("3", pytest.approx(75.866667, rel=1e-6))
        assert float(row.top1_half_width_percent) == pytest.approx(0.625163, rel=1e-5)
        assert float(row.images_per_s_mean) == pytest.approx(60_500)
        assert float(row.images_per_s_half_width) == pytest.approx(1242.07, rel=1e-5)
    assert [float(rows.loc[name].top1_percent) for name in ("lars", "lars-1", "lars-2")] == [75.9, 76.1, 75.6]
    alone = rows.loc["decay"]
    assert (alone.n, alone.top1_mean_percent, alone.top1_half_width_percent) == ("1", "", "")


def test_means_are_shown_to_people_only_where_a_recipe_was_repeated(plan: Plan) -> None:
    def headings() -> list[str]:
        return [column.key for column in BUILDERS["results"](gather(plan)).shown]

    assert "top1_half_width_percent" in headings()
    for name in ("lars-1", "lars-2"):
        plan.run_record(name).unlink()
    assert "top1_half_width_percent" not in headings()


def test_the_same_seed_twice_or_other_hardware_is_no_further_sample(plan: Plan) -> None:
    again = record_of("lars-1")
    again = again.model_copy(update={"settings": full(), "plan": "made"})
    write_record(plan.run_record("lars-1"), again)
    elsewhere = record_of("lars-2")
    placement = elsewhere.placement.model_copy(update={"device": "NVIDIA H200"})
    write_record(plan.run_record("lars-2"), elsewhere.model_copy(update={"placement": placement}))
    assert list(csv("results", plan).set_index("origin").loc[["lars", "lars-1", "lars-2"]].n) == ["1", "1", "1"]


def test_the_ablations_hold_the_papers_numbers_and_the_runs_that_do_the_same(plan: Plan) -> None:
    rows = csv("ablations", plan)
    assert list(rows.published) == ["55.8", "57.1", "58.7", "58.8", "60.6", "71.9", "76.2"]
    assert list(rows.published_certainty) == [
        *["confirmed"] * 3,
        "unconfirmed",
        *["confirmed"] * 2,
        "unconfirmed",
    ]
    assert [round(float(value), 4) if value else None for value in rows.own] == [
        None,
        57,
        None,
        58.9,
        None,
        72.5,
        75.8667,
    ]
    assert list(rows.n) == ["", "1", "", "1", "", "1", "3"]
    assert rows.own_run.iloc[-1] == "lars, lars-1, lars-2"
    assert float(rows.own_half_width.iloc[-1]) == pytest.approx(0.625163, rel=1e-5)


def test_a_row_without_a_run_names_what_would_fill_it(plan: Plan) -> None:
    before = csv("ablations", plan).set_index("published")
    assert before.loc["76.2"].wanted == ""
    assert before.loc["55.8"].wanted == (
        "a run by recipe paper-alexnet-64k with optimizer.no_decay: [], model.bn_after_pool5: false"
    )
    for name in ("lars", "lars-1", "lars-2"):
        plan.run_record(name).unlink()
    # What else does the same, on one process, does not take their place.
    assert csv("ablations", plan).set_index("published").loc["76.2"].wanted == (
        "run resnet50-lars-64k of plan ilsvrc2012"
    )
    notes = BUILDERS["ablations"](gather(plan)).footnotes()
    assert any("run resnet50-lars-64k of plan ilsvrc2012" in note for note in notes)


def filled(row: Ablation, folder: Path) -> RunPlan:
    """The settings of the run that the row says would fill it."""
    if row.fill.run:
        shutil.copytree(ROOT / "config/plans", folder / "config/plans", dirs_exist_ok=True)
        return load_plan(Path("config/plans/ilsvrc2012.yaml")).runs[row.fill.run]
    run: dict[str, Any] = {"recipe": row.fill.recipe, "device": "gpu"}
    for path, value in row.fill.changes.items():
        *blocks, key = path.split(".")
        place = run
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = list(value) if isinstance(value, tuple) else value
    data = {"dataset": "made", "source": {"kind": "synthetic"}}
    Path("filled.yaml").write_text(yaml.safe_dump({"name": "filled", "data": data, "runs": {"one": run}}))
    return load_plan(Path("filled.yaml")).runs["one"]


@pytest.mark.parametrize("row", published().ablations, ids=lambda row: f"{row.model}, {row.top1_percent.value}")
def test_the_run_that_is_named_for_an_empty_row_fills_it(row: Ablation, here: Path) -> None:
    (here / "config").mkdir()
    shutil.copy(ROOT / "config/recipes.yaml", here / "config/recipes.yaml")
    chosen = filled(row, here)
    assert chosen.recipe == row.fill.recipe
    plan = plan_of({"one": chosen})
    record = run_record("one", "made", settings(epochs=1)).model_copy(update={"settings": chosen, "class_count": 1000})
    write_record(plan.run_record("one"), record)
    rows = csv("ablations", plan).set_index("published")
    assert rows.loc[f"{row.top1_percent.value:g}"].own_run == "one"


def test_half_precision_stands_beside_runs_that_differ_in_it_alone(plan: Plan) -> None:
    rows = csv("half-precision", plan)
    assert list(rows.origin) == ["paper", "paper", "one-fp32", "one-half"]
    assert list(rows.precision) == ["fp32", "half"] * 2
    assert numbers(rows.images_per_s) == [172, 218, 1000, 2600]
    assert numbers(rows.ratio) == [None, 1.27, 1, 2.6]
    assert numbers(rows.n) == [None, None, 1, 1]
    assert list(rows.ratio_certainty[:2]) == ["", "derived"]
    assert list(rows.images_per_s_certainty[:2]) == ["confirmed", "confirmed"]
    assert list(rows.batch_certainty[:2]) == ["unconfirmed", "unconfirmed"]


def test_rates_are_those_of_a_device_and_their_means_over_seeds() -> None:
    runs = {
        "two": (full(processes=2, precision="bf16"), 70.0, 500.0),
        "two-again": (full(processes=2, precision="bf16", seed=1), 70.0, 540.0),
        "two-fp32": (full(processes=2), 70.0, 200.0),
        "other": (full(processes=4), 70.0, 900.0),
    }
    plan = plan_of({name: chosen for name, (chosen, _, _) in runs.items()})
    for name, (chosen, top1, rate) in runs.items():
        write_record(plan.run_record(name), run_record(name, "made", chosen, top1, rate))
    rows = csv("half-precision", plan).set_index("origin")
    assert list(rows.index) == ["paper", "paper", "two-fp32", "two"]
    # 250 and 270 a device: 260 against 100; s = √200 and t = 12.706205, over √2: 127.062.
    assert numbers(rows.loc["two", ["images_per_s", "half_width", "ratio", "n"]]) == [260, 127.062, 2.6, 2]


def test_rates_on_other_hardware_give_no_ratio(plan: Plan) -> None:
    moved = record_of("one-half")
    placement = moved.placement.model_copy(update={"device": "NVIDIA H200"})
    write_record(plan.run_record("one-half"), moved.model_copy(update={"placement": placement}))
    rows = csv("half-precision", plan).set_index("origin")
    assert numbers(rows.loc["one-half", ["images_per_s", "ratio"]]) == [2600, None]


def changed(before: pd.DataFrame, after: pd.DataFrame) -> set[tuple[str, str]]:
    """The cells that differ, by their row's name and their column."""
    assert before.shape == after.shape
    where = (before != after).to_numpy()
    return {(before.iloc[row, 0], before.columns[column]) for row, column in zip(*where.nonzero(), strict=True)}


#: What stays of a run's row where its record is gone.
NAMES = {"runs": {"run"}, "results": {"origin"}, "half-precision": {"origin", "model", "precision"}}


def test_removing_a_record_changes_its_cells_and_no_other(plan: Plan) -> None:
    names = ("runs", "results", "ablations", "half-precision", "steps", "systems")
    before = {name: csv(name, plan) for name in names}
    plan.run_record("decay").unlink()
    gone = {name: changed(before[name], csv(name, plan)) for name in names}
    for name in ("runs", "results"):
        had = before[name][before[name].iloc[:, 0] == "decay"].iloc[0]
        assert gone[name] == {("decay", column) for column in had.index[had != ""]} - {("decay", *NAMES[name])}
    assert {column for _, column in gone["ablations"]} == {"own", "n", "own_run", "wanted"}
    assert len(gone["ablations"]) == 4
    assert gone["half-precision"] == gone["steps"] == gone["systems"] == set()


def test_removing_one_precision_empties_its_row(plan: Plan) -> None:
    before = csv("half-precision", plan)
    plan.run_record("one-half").unlink()
    after = csv("half-precision", plan)
    assert changed(before, after) == {
        ("one-half", column)
        for column in ("hardware", "images_per_s", "images_per_s_certainty", "ratio", "ratio_certainty", "n", "source")
    }
    assert after.set_index("origin").loc["one-half"].source == "no record yet"


def test_removing_one_seed_changes_its_row_and_the_means_of_the_others(plan: Plan) -> None:
    before = csv("results", plan)
    plan.run_record("lars-2").unlink()
    after = csv("results", plan)
    means = ["n", "top1_mean_percent", "top1_half_width_percent", "images_per_s_half_width"]
    # The mean of 60,000, 61,000 and 60,500 is that of the first two.
    of_others = {(row, column) for row, column in changed(before, after) if row != "lars-2"}
    assert of_others == {(row, column) for row in ("lars", "lars-1") for column in means}
    assert set(after.set_index("origin").loc["lars-2"]) == {""}
    # (75.9 + 76.1) / 2 and s = √0.02, t = 12.706205: 1.27062.
    assert after.set_index("origin").loc["lars", means[:3]].pipe(numbers) == [2, 76, 1.27062]


def test_what_a_plan_expects_of_another_keeps_its_row_and_is_named() -> None:
    expects = ["made/lars", "made/decay"]
    drawing_only = plan_of(
        {},
        "paper",
        data=None,
        comm=None,
        scale=None,
        report={"records": ["results/made/runs/*.json"], "expects": expects},
    )
    write_record(Path("results/made/runs/decay.json"), record_of("decay"))
    write_record(Path("results/made/runs/alexnet.json"), record_of("alexnet"))
    evidence = gather(drawing_only)
    assert [slot.label for slot in evidence.slots] == ["lars", "decay", "alexnet"]
    assert [isinstance(slot, Run) for slot in evidence.slots] == [False, True, True]
    assert evidence.missing == ("lars",)
    notes = BUILDERS["results"](evidence).notes
    assert "lars (plan made) has no record yet: snakemake results/made/runs/lars.json --config plan=made." in notes


def test_what_is_expected_is_named_by_its_plan_and_run() -> None:
    with pytest.raises(ValidationError, match="expects"):
        plan_of({}, "paper", data=None, comm=None, scale=None, report={"expects": ["lars"]})


def test_the_step_counts_are_those_of_the_cost_model() -> None:
    rows = csv("steps", plan_of({}, data=None, comm=None, scale=None))
    counted = rows[["processes", "group", "ring", "ring_computed", "hierarchical", "hierarchical_computed"]]
    # 2 x 1,023, and 4 x 15 + 2 x 63.
    assert ["1024", "16", "2046", "2046", "186", "186"] in counted.to_numpy().tolist()
    # 2 x 2,047, and 4 x 31 + 2 x 63.
    assert ["2048", "32", "4094", "4094", "250", "250"] in counted.to_numpy().tolist()
    assert set(rows.agrees) == {"yes"}


def test_a_step_count_that_disagrees_is_told() -> None:
    known = {"accelerators": 1024, "group": 16, "certainty": "confirmed", "source": "ABS"}
    assert _step_cells(StepCount.model_validate(known | {"ring": 2046, "hierarchical": 188}))["agrees"] == "no"
    assert _step_cells(StepCount.model_validate(known | {"ring": 2046, "hierarchical": 186}))["agrees"] == "yes"
