"""Tables, figures and page from hand-made records."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_records import ROOT, RUNS, SERIES, comm_record, drawn_as, plan_of, points, record_all, run_record, settings
from sweep_records import PROVENANCE, plan_blocks

from fourminutes.errors import UserError
from fourminutes.facts import Certainty
from fourminutes.plan import (
    ModelPlan,
    OptimizerPlan,
    Plan,
    ReducePlan,
    RunPlan,
)
from fourminutes.record import (
    Placement,
    StepTimes,
    write_record,
)
from fourminutes.report import FIGURES, TABLES, drawing, figure_names, make_report, table_names
from fourminutes.report.evidence import gather
from fourminutes.report.figures import BUILDERS
from fourminutes.report.figures_runs import TIME_PARTS
from fourminutes.report.names import FIGURE_FORMATS, TABLE_FORMATS
from fourminutes.report.published import published
from fourminutes.report.summary import key_numbers, lines
from fourminutes.report.tables import BUILDERS as TABLE_BUILDERS
from fourminutes.report.tables import ablations_table, results_table, runs_table
from fourminutes.report.words import ending, hardware, hardware_brief


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A whole report, and the folder that it was made in."""
    folder = tmp_path_factory.mktemp("report")
    plan = plan_of(RUNS, **plan_blocks(), scaling=SERIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record_all(plan)
        make_report(plan)
    return plan, folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(plan: Plan) -> list[Path]:
    """What the workflow declares."""
    return [
        *(plan.results / "tables" / f"{name}.{form}" for name in table_names(plan) for form in TABLE_FORMATS),
        *(plan.results / "figures" / f"{name}.{form}" for name in figure_names(plan) for form in FIGURE_FORMATS),
        plan.results / "report.html",
    ]


def test_every_declared_output_is_written(built: tuple[Plan, Path]) -> None:
    plan, folder = built
    assert set(table_names(plan)) == set(TABLES)
    assert set(figure_names(plan)) == set(FIGURES)
    assert [path for path in outputs(plan) if not (folder / path).stat().st_size] == []


def test_a_plan_without_sweeps_declares_nothing_of_them() -> None:
    plan = plan_of(RUNS, scaling=SERIES)
    assert set(TABLES) - set(table_names(plan)) == {"claims", "sweeps", "ledger"}
    assert set(FIGURES) - set(figure_names(plan)) == {"batch-size", "tuning"}


def test_a_plan_without_a_traced_step_has_no_figure_of_it() -> None:
    untraced = {name: run.model_copy(update={"reduce": ReducePlan()}) for name, run in RUNS.items()}
    assert "overlap" in figure_names(plan_of(RUNS))
    assert "overlap" not in figure_names(plan_of(untraced))


def test_the_overlap_shows_each_buckets_way_and_when_the_last_was_ready(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    (axes,) = (one for one in BUILDERS["overlap"](gather(plan)).axes if one.patches)
    assert "resnet50-lars-1024-x2" in axes.get_title()
    assert "step 20: 25 % hidden" in axes.get_title()
    bars = [(round(bar.get_x()), round(bar.get_x() + bar.get_width())) for bar in axes.patches]
    assert bars == [(0, 1), (1, 5), (3, 5), (5, 9)]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(3)


def test_equal_records_give_equal_bytes(built: tuple[Plan, Path], here: Path) -> None:
    plan, folder = built
    record_all(plan)
    make_report(plan)
    assert [path for path in outputs(plan) if (folder / path).read_bytes() != (here / path).read_bytes()] == []


def test_a_plan_without_records_still_gets_all_that_it_declares(here: Path) -> None:
    plan = plan_of(RUNS, **plan_blocks())
    make_report(plan)
    assert [path for path in outputs(plan) if not path.stat().st_size] == []
    assert "No record yet: alexnet-sgd-64" in (plan.results / "tables/runs.md").read_text()
    assert "No training run has been recorded yet" in (plan.results / "figures/accuracy.svg").read_text()
    page = (plan.results / "report.html").read_text()
    assert "No training run has been recorded yet" in page
    # What is there comes first.
    assert page.index('<section id="systems"') < page.index('<section id="runs"')


def test_drawing_loads_neither_torch_nor_dali_and_the_names_alone_not_even_pandas(here: Path) -> None:
    plan = plan_of(RUNS, **plan_blocks())
    record_all(plan)
    Path("plan.json").write_text(plan.model_dump_json())
    script = """
import sys
from pathlib import Path
from fourminutes.plan import Plan
from fourminutes.report import figure_names, make_report, table_names
plan = Plan.model_validate_json(Path("plan.json").read_text())
assert figure_names(plan) and table_names(plan)
heavy = {"matplotlib", "pandas", "torch", "nvidia"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
make_report(plan)
heavy = {"torch", "nvidia"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_of_runs_holds_the_numbers_worked_out_by_hand(built: tuple[Plan, Path]) -> None:
    plan, folder = built
    table = pd.read_csv(folder / plan.results / "tables/runs.csv").set_index("run")
    # 6 epochs of 1,600 images at 100 images/s: 16 s each, of which 5 % is input wait, and 2 s beside.
    run = table.loc["resnet50-lars-512"]
    assert (run.images_per_s, run.wall_s, run.epochs, run.n) == (100, 6 * 18, 6, 1)
    assert run.input_wait_percent == pytest.approx(100 * 0.8 / 18, rel=1e-5)
    assert run.top1_percent == pytest.approx(80)
    assert run.record == "results/made/runs/resnet50-lars-512.json"


def test_the_table_of_runs_fits_a_terminal(built: tuple[Plan, Path]) -> None:
    plan, folder = built
    lines = (folder / plan.results / "tables/runs.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(RUNS)
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(rows[0]) <= 120


def shown(plan: Plan) -> list[str]:
    """The columns of the table of runs that people see."""
    return [column.key for column in runs_table(gather(plan)).shown]


def test_precision_and_skipped_steps_are_shown_where_a_run_has_unusual_ones(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    assert not {"precision", "skipped_steps"} & set(shown(plan))
    half = settings().model_copy(update={"precision": "half"})
    record = run_record("resnet50-lars-512", "made", half)
    overflowed = record.epochs[0].model_copy(update={"skipped_steps": 2})
    write_record(
        plan.run_record(record.run), record.model_copy(update={"epochs": (overflowed, overflowed, *record.epochs[2:])})
    )
    assert {"precision", "skipped_steps"} <= set(shown(plan))
    cells = next(row.cells for row in runs_table(gather(plan)).rows if row.cells["run"] == record.run)
    assert (cells["precision"], cells["skipped_steps"]) == ("half", 4)


def test_what_disturbed_a_run_stands_below_the_table(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    record = run_record("alexnet-sgd-64", "made", RUNS["alexnet-sgd-64"])
    noted = record.sessions[0].model_copy(update={"note": "went on with 2 processes after 4"})
    write_record(plan.run_record(record.run), record.model_copy(update={"sessions": (noted,)}))
    assert "alexnet-sgd-64: went on with 2 processes after 4." in runs_table(gather(plan)).notes


def test_the_parts_of_a_runs_time_are_all_drawn_and_add_up(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    assert {part for part, *_ in TIME_PARTS} == set(StepTimes.model_fields) - {"total_s"}
    for run in gather(plan).runs:
        assert sum(run.percent(part) for part, *_ in TIME_PARTS) == pytest.approx(100)


def test_removing_a_record_empties_its_row_and_no_other(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    before = {row.cells["run"]: row.cells for row in runs_table(gather(plan)).rows}
    plan.run_record("alexnet-sgd-64").unlink()
    after = {row.cells["run"]: row.cells for row in runs_table(gather(plan)).rows}
    assert after.pop("alexnet-sgd-64") == {"run": "alexnet-sgd-64"}
    del before["alexnet-sgd-64"]
    assert after == before


def test_a_record_made_with_other_settings_than_the_plans_is_named(here: Path) -> None:
    record_all(plan_of(RUNS))
    changed = plan_of(RUNS | {"alexnet-sgd-64": settings("alexnet_bn", "sgd", 128)})
    assert any("changed since: alexnet-sgd-64." in note for note in runs_table(gather(changed)).notes)


def test_repeats_with_other_seeds_are_counted(here: Path) -> None:
    again = settings().model_copy(update={"seed": 7})
    plan = plan_of(RUNS | {"again": again})
    record_all(plan)
    counted = {run.label: run.repeats for run in gather(plan).runs}
    assert counted == {"alexnet-sgd-64": 1, "resnet50-lars-512": 2, "resnet50-lars-1024-x2": 1, "again": 2}


def test_a_damaged_record_is_named(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    plan.run_record("alexnet-sgd-64").write_text("{}")
    with pytest.raises(UserError, match=r"alexnet-sgd-64\.json: is no RunRecord"):
        make_report(plan)


def test_a_plan_that_only_draws_takes_each_record_that_its_globs_match_once(here: Path) -> None:
    record_all(plan_of(RUNS))
    record_all(plan_of(RUNS, name="other"))
    globs = ["results/*/runs/*.json", "results/made/runs/alexnet*.json"]
    drawing_only = plan_of({}, "paper", data=None, comm=None, scale=None, report={"records": globs})
    labels = [run.label for run in gather(drawing_only).runs]
    assert len(labels) == len(set(labels)) == 2 * len(RUNS)
    assert "other/alexnet-sgd-64" in labels


NO_DECAY_ROW = "+ no decay on bias and batch norm"


def paper_run(image_px=224, width=1.0, **optimizer: Any) -> RunPlan:
    """The paper's ResNet-50, or nearly."""
    changed = {"model": ModelPlan(image_px=image_px, width=width), "optimizer": OptimizerPlan(**optimizer)}
    return settings(batch=65536, epochs=90).model_copy(update=changed)


def changes_beside(chosen: RunPlan, classes: int = 1000) -> list[str]:
    """The ablations that a run of these settings stands beside."""
    plan = plan_of({"full": chosen})
    write_record(
        plan.run_record("full"), run_record("full", "made", chosen).model_copy(update={"class_count": classes})
    )
    rows = ablations_table(gather(plan)).rows
    return [str(row.cells["change"]) for row in rows if row.cells["own_run"] == "full"]


@pytest.mark.parametrize("image_px", [224, 227])
def test_a_run_on_imagenet_with_the_papers_batch_stands_beside_its_ablation(here: Path, image_px: int) -> None:
    assert changes_beside(paper_run(image_px)) == [NO_DECAY_ROW]
    assert changes_beside(paper_run(no_decay=())) == ["with LARS"]


@pytest.mark.parametrize(
    ("chosen", "classes"),
    [
        (paper_run(), 10),
        (paper_run(image_px=64), 1000),
        (paper_run(width=0.5), 1000),
        (paper_run(nesterov=True), 1000),
        (paper_run(no_decay=("bias",)), 1000),
        (settings(), 1000),
    ],
    ids=["classes", "crop", "width", "Nesterov", "decay in part", "batch"],
)
def test_a_run_that_does_anything_else_stands_beside_no_ablation(here: Path, chosen: RunPlan, classes: int) -> None:
    assert changes_beside(chosen, classes) == []


def test_only_the_two_rows_that_leave_the_precision_open_say_so() -> None:
    noted = {row.top1_percent.value for row in published().ablations if "single or half precision" in row.note}
    assert noted == {60.6, 71.9}


# What names a row, or is an argument of its formula, claims nothing.
NO_CLAIM = {"origin", "who", "year", "model", "classes", "change", "quantity", "unit", "note", "source"}
NO_CLAIM |= {"processes", "group", "ring_computed", "hierarchical_computed", "agrees"}


@pytest.mark.parametrize(
    ("name", "published_rows"),
    [
        ("results", published().headline),
        ("ablations", published().ablations),
        ("systems", published().systems),
        ("steps", published().steps),
    ],
)
def test_every_cell_of_an_unconfirmed_row_is_marked_unless_it_is_surer_itself(name: str, published_rows: Any) -> None:
    table = TABLE_BUILDERS[name](gather(plan_of({}, data=None, comm=None, scale=None)))
    csv = pd.read_csv(io.StringIO(table.csv()))
    unconfirmed = [index for index, row in enumerate(published_rows) if row.certainty is Certainty.UNCONFIRMED]
    assert unconfirmed
    for index in unconfirmed:
        surer = {claim.value for claim in published_rows[index].claims() if claim.certainty is Certainty.CONFIRMED}
        for column, text in zip(table.shown, table.texts()[index], strict=True):
            cell = table.rows[index].cells.get(column.key)
            if column.key not in NO_CLAIM and cell is not None and getattr(cell, "value", None) not in surer:
                assert re.fullmatch(r"\(.+\)†", text), (name, column.key, text)
                assert csv.loc[index, f"{column.key}_certainty"] == "unconfirmed"


def test_unconfirmed_numbers_are_marked_in_every_form_of_a_table(here: Path) -> None:
    table = results_table(gather(plan_of({}, data=None, comm=None, scale=None)))
    assert "(76.2)†" in table.markdown()
    assert "unconfirmed: remembered" in table.markdown()
    assert r"(76.2)\textsuperscript{\textdagger}" in table.latex()
    Path("results.csv").write_text(table.csv())
    rows = pd.read_csv("results.csv").set_index("top1_percent")
    assert rows.loc[76.2, "top1_percent_certainty"] == "unconfirmed"
    assert rows.loc[75.8, "top1_percent_certainty"] == "confirmed"
    assert rows.loc[75.8, "images_per_s_certainty"] == "derived"


def test_latex_is_booktabs_and_escapes_what_latex_would_read(here: Path) -> None:
    latex = results_table(gather(plan_of({}, data=None, comm=None, scale=None))).latex()
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"top-1 \%" in latex
    assert not re.search(r"(?<!\\)[%&#_](?=[^ ])", latex.replace(" & ", " "))


def test_a_system_is_drawn_as_sure_as_the_less_sure_of_its_time_and_size(here: Path) -> None:
    drawn = points("systems", plan_of({}, data=None, comm=None, scale=None))
    told = set()
    for system in published().systems:
        if system.minutes and system.accelerators:
            certainty = drawing.least_sure(system.minutes, system.accelerators)
            assert drawn_as(drawn[system.accelerators.value, system.minutes.value]) is certainty, system
            told.add(certainty)
    assert told == set(Certainty)


def test_published_points_are_drawn_by_certainty_and_measured_efficiencies_stand_beside_them(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    resnet50, others = 1, 2
    drawn = points("efficiency", plan, axes=resnet50)
    assert drawn_as(drawn[2048, 97]) is Certainty.CONFIRMED
    assert drawn_as(drawn[2048, 87.9]) is Certainty.UNCONFIRMED
    assert drawn_as(points("throughput", plan, axes=resnet50)[2048, 291000]) is Certainty.DERIVED
    # 100 images/s on one process, 141.4 on two with the same work each; at a quarter of the paper's width.
    measured = [y for x, y in points("efficiency", plan, axes=others) if x == 2]
    assert measured == [pytest.approx(100 * 2**0.5 / 2)]


def test_the_time_of_the_allreduce_has_several_ticks(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    with drawing.mpl.rc_context(fname=str(drawing.STYLE)):
        axis = BUILDERS["allreduce"](gather(plan)).axes[0].yaxis
    low, high = axis.get_view_interval()
    assert [tick for tick in axis.get_majorticklocs() if low <= tick <= high] == [0.2, 0.5, 1, 2, 5, 10, 20]


class _Page(HTMLParser):
    """Collects what a page loads, links to and names."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href", "src", "srcset", "data", "poster", "action"):
                (self.links if tag == "a" else self.loads).append(value or "")


@pytest.fixture(scope="module")
def page(built: tuple[Plan, Path]) -> str:
    plan, folder = built
    return (folder / plan.results / "report.html").read_text()


def test_the_page_loads_nothing_from_outside(page: str) -> None:
    parsed = _Page()
    parsed.feed(page)
    assert [load for load in parsed.loads if not load.startswith("#")] == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_every_link_inside_the_page_arrives_and_no_name_is_given_twice(page: str, built: tuple[Plan, Path]) -> None:
    plan, folder = built
    parsed = _Page()
    parsed.feed(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    inside = {link[1:] for link in parsed.links + parsed.loads if link.startswith("#")}
    assert inside - set(parsed.ids) == set()
    files = [link for link in parsed.links if not link.startswith(("#", "https://"))]
    assert files
    assert [file for file in files if not (folder / plan.results / file).is_file()] == []


def test_the_page_tells_the_origin_of_every_run_with_its_text_escaped(page: str) -> None:
    for name in RUNS:
        assert f"results/made/runs/{name}.json" in page
    assert PROVENANCE.git_commit is not None
    assert PROVENANCE.git_commit in page
    assert "Some CPU &lt;2.4 GHz&gt;" in page
    assert "<2.4 GHz>" not in page


def test_the_summary_is_worked_out_from_the_records(page: str) -> None:
    summary = re.sub(r"\s+", " ", page.split('<dl class="summary">')[1].split("</dl>", maxsplit=1)[0])
    assert 1 < summary.count("<dt>") <= 5
    assert (
        "3 runs of AlexNet-BN ×0.25 and ResNet-50 ×0.25 are recorded, on 10 classes and up to 2 processes." in summary
    )
    assert "80.0 % top-1" in summary
    assert "resnet50-lars-1024-x2, trains at 141 images/s" in summary
    # The quartiles of the two overlap where their times cross.
    assert (
        "hierarchical from 1 KiB to 16 KiB, undecided (no difference beyond the spread) from 128 KiB to 1 MiB "
        "and ring at 8 MiB" in summary
    )
    # 100 / (1 + 0.01 (sqrt(2048) - 1) f) for f = 2 and 1.
    assert (
        "At 2,048 processes, the largest size predicted, the fitted model gives 53 to 69 % efficiency over runs and "
        "algorithms (extrapolated from 4 processes on 1 host, all links taken as alike)." in summary
    )
    assert re.search(r"a step&#39;s simulation is [\d.]+ % off in the median of \d+ cases? in which the wire", summary)


def test_a_predicted_efficiency_is_a_key_number_only_where_links_between_hosts_were_measured(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    assert {number.origin for number in key_numbers(gather(plan))} == {"measured"}
    write_record(plan.comm_record, comm_record(hosts=("node1", "node1", "node2", "node2")))
    predicted = [number for number in key_numbers(gather(plan)) if number.origin == "predicted"]
    assert [number.value for number in predicted] == ["53 to 69"]


@pytest.mark.parametrize(
    ("model", "percent"), [("alexnet_bn", "58.7 % for AlexNet"), ("resnet50", "75.8 % for ResNet-50")]
)
def test_an_accuracy_is_told_beside_the_papers_for_the_same_network(here: Path, model: str, percent: str) -> None:
    plan = plan_of({"one": settings(model)})
    record_all(plan)
    told = lines(gather(plan))["Trained"]
    assert f"the paper's {percent} are for the full network on the 1,000 classes of ImageNet" in told


def test_processes_on_one_cpu_are_not_told_as_so_many_cpus() -> None:
    alone = Placement(launcher="torchrun", hosts=("node1",) * 2, device="cpu", backend="gloo")
    assert hardware(alone, PROVENANCE) == "2 processes, 1 host, Some CPU <2.4 GHz> (2 cores)"
    assert hardware_brief(alone, PROVENANCE) == "2 proc · Some CPU <2.4 GHz>, 2 cores"
    spread = alone.model_copy(update={"hosts": ("node1", "node2"), "device": "NVIDIA H200"})
    assert hardware(spread, PROVENANCE) == "2 × NVIDIA H200, 2 hosts"
    assert hardware_brief(spread, PROVENANCE) == "2 × NVIDIA H200, 2 hosts"


def test_the_workflows_captions_are_the_pages() -> None:
    folder = ROOT / "workflow/report"
    captions = FIGURES | {f"table-{name}": caption for name, caption in TABLES.items()}
    assert {name: (folder / f"{name}.rst").read_text().strip() for name in captions} == captions


def test_every_interruption_of_a_run_is_told():
    record = run_record("a")
    (finished,) = record.sessions
    signalled = finished.model_copy(update={"ended": "interrupted", "to_step": 4, "why": "SIGUSR1", "job": "12"})
    silent = finished.model_copy(update={"ended": "running", "from_step": 4, "to_step": 9})
    assert ending(signalled) == "interrupted at step 4 (SIGUSR1, job 12)"
    assert ending(silent) == "ended without a word, and went on from step 9"


def test_runs_stand_side_by_side_with_what_differs_between_them(here: Path) -> None:
    plan = plan_of(RUNS)
    record_all(plan)
    table = TABLE_BUILDERS["compare"](gather(plan))
    assert [column.heading for column in table.columns[1:]] == list(RUNS)
    rows = {row.cells["what"]: [row.cells.get(run) for run in RUNS] for row in table.rows}
    assert rows["optimizer.kind"] == ["sgd", "lars", "lars"]
    assert rows["batch.global_batch"] == ["64", "512", "1024"]
    assert rows["processes"] == ["1", "1", "2"]
    assert "model.width" not in rows
    # Of 16 s of steps and 2 s of evaluation and checkpoints half of the steps are backward passes.
    assert rows["backward, %"][0] == f"{100 * 8 / 18:.1f}"
    assert rows["top-1, %"] == ["80.0", "80.0", "80.0"]


def test_one_run_alone_is_compared_with_nothing(here: Path) -> None:
    plan = plan_of({"alone": settings()})
    record_all(plan)
    assert TABLE_BUILDERS["compare"](gather(plan)).footnotes() == ("There are no two recorded runs to compare.",)
