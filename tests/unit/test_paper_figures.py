"""What stands in the paper's figures: published points by their certainty, recorded and predicted ones beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text
from report_records import drawn_as, plan_of, points, scale_record
from test_paper_tables import RECORDED, record_of

from fourminutes.facts import Certainty
from fourminutes.plan import Plan
from fourminutes.record import write_record
from fourminutes.report import drawing
from fourminutes.report.evidence import gather
from fourminutes.report.figures import BUILDERS

ALEXNET, RESNET50 = 0, 1


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing() -> Plan:
    return plan_of({}, data=None, comm=None, scale=None)


@pytest.fixture
def plan() -> Plan:
    """A plan of the paper's runs, all recorded, and predictions from two of them."""
    made = plan_of({name: chosen for name, (chosen, _, _) in RECORDED.items()})
    for name in RECORDED:
        write_record(made.run_record(name), record_of(name))
    write_record(made.scale_record, scale_record(("lars", "alexnet")))
    return made


def panels(name: str, plan: Plan) -> list[Axes]:
    with drawing.mpl.rc_context(fname=str(drawing.STYLE)):
        return BUILDERS[name](gather(plan)).axes


def lines(axes: Axes) -> dict[str, dict[float, float]]:
    """The lines of several points, by their label."""
    return {
        str(line.get_label()): dict(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.get_lines()
        if len(line.get_xdata()) > 2
    }


def told(drawn: dict[tuple[float, float], Any]) -> dict[tuple[float, float], Certainty]:
    """The certainty of every point that is black, and so published."""
    return {point: drawn_as(look) for point, look in drawn.items() if look[0] in (drawing.INK, drawing.PAPER)}


def test_the_ablations_are_drawn_by_technique_as_sure_as_they_are() -> None:
    confirmed, unconfirmed = Certainty.CONFIRMED, Certainty.UNCONFIRMED
    assert told(points("ablations", nothing(), ALEXNET)) == {
        (58.8, 0): unconfirmed,
        (55.8, 1): confirmed,
        (57.1, 2): confirmed,
        (58.7, 3): confirmed,
        (58.8, 4): unconfirmed,
    }
    assert told(points("ablations", nothing(), RESNET50)) == {
        (75.3, 0): confirmed,
        (60.6, 1): confirmed,
        (71.9, 2): confirmed,
        (76.2, 3): unconfirmed,
    }


def test_recorded_runs_stand_below_their_technique(plan: Plan) -> None:
    own = {(round(x, 4), y): look[0] for (x, y), look in points("ablations", plan, RESNET50).items() if y != round(y)}
    assert own == {(72.5, 2.25): drawing.COLOURS[0], (75.8667, 3.25): drawing.COLOURS[0]}
    assert {(x, y) for x, y in points("ablations", plan, ALEXNET) if y != round(y)} == {(57.0, 2.25), (58.9, 4.25)}


def test_half_precision_is_drawn_beside_runs_that_differ_in_it_alone(plan: Plan) -> None:
    rates, ratios = points("half-precision", plan, 0), points("half-precision", plan, 1)
    assert told(rates) == {(172, 0): Certainty.CONFIRMED, (218, 0): Certainty.CONFIRMED}
    assert told(ratios) == {(1.27, 0): Certainty.DERIVED}
    assert {(round(x), y) for x, y in rates if y == 1} == {(1000, 1), (2600, 1)}
    assert [(pytest.approx(2.6), 1)] == [point for point in ratios if point[1] == 1]
    assert [label.get_text() for label in panels("half-precision", plan)[0].get_yticklabels()] == [
        "ResNet-50, P40",
        "one",
    ]


def test_the_steps_are_counted_and_the_published_ones_lie_on_them() -> None:
    (axes,) = panels("steps", nothing())
    drawn = lines(axes)
    assert {label: counts[1024] for label, counts in drawn.items()} == {
        "ring": 2046,
        "hierarchical, groups of 8": 282,
        "hierarchical, groups of 16": 186,
        "hierarchical, groups of 32": 186,
    }
    counted = {(x, y) for counts in drawn.values() for x, y in counts.items()}
    published = told(points("steps", nothing()))
    assert set(published) <= counted
    assert {(512, 122), (1024, 186), (1024, 2046), (2048, 250)} <= set(published)
    assert set(published.values()) == {Certainty.UNCONFIRMED}


def test_the_published_throughput_stands_with_its_network() -> None:
    derived, unconfirmed = Certainty.DERIVED, Certainty.UNCONFIRMED
    assert told(points("throughput", nothing(), ALEXNET)) == {(1024, 507000): derived, (512, 406000): unconfirmed}
    assert told(points("throughput", nothing(), RESNET50)) == {(2048, 291000): derived, (1024, 221000): unconfirmed}


def test_the_published_efficiency_stands_with_its_network() -> None:
    assert told(points("efficiency", nothing(), ALEXNET)) == {
        (512, 91.4): Certainty.UNCONFIRMED,
        (1024, 82.7): Certainty.UNCONFIRMED,
    }
    assert points("efficiency", nothing(), RESNET50).keys() == {(1024, 99), (1024, 99.2), (2048, 97), (2048, 87.9)}


def test_runs_and_predictions_stand_with_the_network_that_they_train(plan: Plan) -> None:
    assert len(panels("throughput", plan)) == 2
    assert (32, 160_000) in {(x, round(y)) for x, y in points("throughput", plan, ALEXNET)}
    assert (1, 2600) in {(x, round(y)) for x, y in points("throughput", plan, RESNET50)}
    predicted = [line for line in panels("efficiency", plan)[ALEXNET].get_lines() if len(line.get_xdata()) > 2]
    assert [line.get_linestyle() for line in predicted] == ["--", "--"]
    # 100 / (1 + 0.01 (sqrt(2048) - 1) f) for f = 2 and 1.
    assert [float(line.get_ydata()[-1]) for line in predicted] == [
        pytest.approx(53.0477, 1e-5),
        pytest.approx(69.3218, 1e-5),
    ]


def test_other_widths_have_a_panel_of_their_own(plan: Plan) -> None:
    chosen, *_ = RECORDED["one-half"]
    narrow = chosen.model_copy(update={"model": chosen.model.model_copy(update={"width": 0.5})})
    record = record_of("one-half").model_copy(update={"settings": narrow})
    write_record(plan.run_record("one-half"), record)
    assert [axes.get_title(loc="left") for axes in panels("throughput", plan)][-1] == "Other networks, images/s"


def test_the_looks_of_a_run_stay_where_another_record_goes(plan: Plan) -> None:
    def looks() -> dict[str, str]:
        return {
            str(line.get_label()): str(line.get_color()) + str(line.get_marker())
            for line in panels("accuracy", plan)[0].get_lines()
        }

    before = looks()
    plan.run_record("lars-1").unlink()
    del before["lars-1"]
    assert looks() == before


def test_the_accuracy_names_the_records_that_it_wants_and_how_they_are_made(plan: Plan) -> None:
    def texts() -> str:
        return drawing.draw(BUILDERS["accuracy"], gather(plan))["svg"].decode()

    plan.run_record("decay").unlink()
    assert "decay: no record yet" in texts()
    for name in RECORDED:
        plan.run_record(name).unlink(missing_ok=True)
    assert "decay: snakemake results/made/runs/decay.json --config plan=made" in texts()


def ticks(axis: Axis) -> list[Text]:
    """The labels of the ticks that are drawn: those within the axis."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def test_the_allreduce_tells_where_it_looked_for_measurements() -> None:
    drawing_only = plan_of({}, "paper", data=None, comm=None, scale=None, report={"comm_records": ["other/comm.json"]})
    svg = drawing.draw(BUILDERS["allreduce"], gather(drawing_only))["svg"].decode()
    assert "looked for other/comm.json" in svg


@pytest.mark.parametrize("name", ["ablations", "half-precision", "throughput", "efficiency", "accuracy"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "nothing recorded"])
def test_nothing_is_cut_off_and_no_two_texts_overlap(plan: Plan, name: str, recorded: bool) -> None:
    with drawing.mpl.rc_context(fname=str(drawing.STYLE)):
        figure = BUILDERS[name](gather(plan if recorded else nothing()))
        figure.draw_without_rendering()
        shown = [
            text.get_window_extent()
            for axes in figure.axes
            if axes.axison
            for text in [*ticks(axes.xaxis), *ticks(axes.yaxis), *axes.texts, axes.xaxis.label]
            if text.get_text() and text.get_visible()
        ]
        shown += [text.get_window_extent() for text in figure.texts]
    shown += [text.get_window_extent() for legend in figure.legends for text in legend.get_texts()]
    page = figure.bbox
    assert [box for box in shown if box.x0 < page.x0 or box.x1 > page.x1 or box.y0 < page.y0 or box.y1 > page.y1] == []
    over = [(a, b) for i, a in enumerate(shown) for b in shown[i + 1 :] if a.overlaps(b)]
    assert over == []
