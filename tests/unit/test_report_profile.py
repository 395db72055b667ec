"""Profiles and series of one device in the report, with values worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from profile_records import ALEXNET, profile_record
from report_records import plan_of, settings
from scaling_records import scaling_record
from test_paper_figures import panels

from fourminutes.plan import Plan
from fourminutes.record import ProfileRecord, write_record
from fourminutes.report.evidence import gather
from fourminutes.report.figures_paper import half_precision
from fourminutes.report.page import page
from fourminutes.report.summary import lines
from fourminutes.report.tables import BUILDERS
from fourminutes.scale.layers import layers_of

_SIX_DIGITS = 1e-5  # of the CSV


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_with(*records: ProfileRecord) -> Plan:
    for number, record in enumerate(records):
        write_record(Path(f"profiles/{number}.json"), record)
    return plan_of({}, data=None, comm=None, scale=None, report={"profiles": ["profiles/*.json"]})


def csv(name: str, plan: Plan) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(BUILDERS[name](gather(plan)).csv()))


def test_a_row_says_where_the_time_goes_and_when_gradients_come() -> None:
    plan = plan_with(profile_record(256), profile_record(64))
    rows = csv("profile", plan)
    assert list(rows.images) == [64, 256]  # however the files are called
    row = rows.iloc[0]
    layers = layers_of(ALEXNET, 1000)
    count, whole = len(layers), sum(sum(layer.tensors) for layer in layers)
    assert row.forward_ms == pytest.approx(count)
    assert row.backward_ms == pytest.approx(2 * count)
    assert (row.backward_low_ms, row.backward_high_ms) == pytest.approx((1.9 * count, 2.2 * count))
    assert [row.conv_percent, row.norm_percent, row.linear_percent] == pytest.approx(
        [100 * 5 / count, 100 * (count - 8) / count, 100 * 3 / count], rel=_SIX_DIGITS
    )
    # Of 13 layers the last 3, all linear, are there after a quarter of the pass, and fc8 alone after a tenth.
    assert count == 13
    assert row.come_10_percent == pytest.approx(100 * 4_097_000 / whole, rel=_SIX_DIGITS)
    linear = sum(sum(layer.tensors) for layer in layers[-3:])
    assert row.come_25_percent == pytest.approx(100 * linear / whole, rel=_SIX_DIGITS)


def test_how_much_later_gradients_come_than_supposed_by_hand() -> None:
    row = csv("profile", plan_with(profile_record())).iloc[0]
    layers = layers_of(ALEXNET, 1000)
    costs = [layer.macs * (1 if place == 0 else 2) for place, layer in enumerate(layers)]
    supposed = [sum(costs[place:]) / sum(costs) for place in range(len(layers))]
    measured = [(len(layers) - place) / len(layers) for place in range(len(layers))]
    sizes = [sum(layer.tensors) for layer in layers]
    late = np.average(np.subtract(measured, supposed), weights=sizes)
    assert late > 0.1
    assert row.later_percent == pytest.approx(100 * late, rel=_SIX_DIGITS)


def test_the_figure_has_a_panel_a_network_and_rises_to_all_gradients() -> None:
    small = profile_record().model_copy(update={"precision": "fp32"})
    (axes,) = panels("profile", plan_with(profile_record(), small))
    lines = axes.get_lines()
    assert len(lines) == 3  # two measured, one by arithmetic
    for line in lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert (x[-1], y[-1]) == pytest.approx((100, 100))
        assert np.all(np.diff(y) >= 0)


def test_a_profile_that_goes_empties_its_row_alone() -> None:
    plan = plan_with(profile_record(64), profile_record(256))
    Path("profiles/0.json").unlink()
    assert list(csv("profile", plan).images) == [256]
    Path("profiles/1.json").unlink()
    table = BUILDERS["profile"](gather(plan))
    assert not table.rows
    assert "fourminutes scale profile" in table.markdown()


def test_every_row_leads_to_its_record_and_command() -> None:
    plan = plan_with(profile_record())
    evidence = gather(plan)
    html = page(evidence, {"profile": BUILDERS["profile"](evidence)}, {})
    (row,) = BUILDERS["profile"](evidence).rows
    assert f'href="#{row.anchor}"' in html
    assert f'id="{row.anchor}"' in html
    assert "fourminutes scale profile --out profile.json" in html


def series_plan() -> Plan:
    """Three series of one process that differ in precision, and one of another batch."""
    forms = ("half", "fp32", "amp")
    runs = {form: settings(batch=64).model_copy(update={"precision": form}) for form in forms}
    runs["other"] = settings(batch=128)
    series = {name: {"run": name, "world_sizes": [1], "input": "synthetic"} for name in runs}
    return plan_of(runs, comm=None, scale=None, scaling=series)


def test_series_that_differ_in_precision_alone_stand_side_by_side() -> None:
    plan = series_plan()
    for name, step_s in {"half": 0.5, "fp32": 2.0, "amp": 1.0, "other": 1.0}.items():
        write_record(plan.scaling_record(name, 1), scaling_record(plan, name, 1, step_s=step_s))
    rows = csv("half-precision", plan).set_index("source")
    ours = rows.loc["series, synthetic input"]
    assert set(ours.precision) == {"fp32", "half", "amp"}
    by_form = ours.set_index("precision")
    # Seven repeats, of steps between 0.8 and 1.2 times as long: the mean of 1 / factor.
    factor = np.mean([1 / factor for factor in (1.0, 0.9, 1.1, 1.05, 0.95, 0.8, 1.2)])
    assert by_form.loc["fp32"].images_per_s == pytest.approx(64 / 2 * factor, rel=_SIX_DIGITS)
    assert list(by_form.loc[["fp32", "amp", "half"]].ratio) == pytest.approx([1, 2, 4])
    assert set(ours.n) == {7}
    assert lines(gather(plan))["Speed"] == (
        f"Half precision trains ResNet-50 ×0.25 with {64 / 0.5 * factor:,.0f} images/s a device on 1 × NVIDIA H200 "
        "(64 images, 4.0 times fp32 without TF32)."
    )
    runs = rows.loc["no record yet"]
    assert set(runs.ratio.isna()) == {True}


def of_two_cards() -> Plan:
    """A plan that draws the same series from the folders of two cards, of which the first is half as fast."""
    plan = series_plan()
    for card, slower in (("A100", 2.0), ("H200", 1.0)):
        for name, step_s in {"half": 0.5, "fp32": 2.0}.items():
            record = scaling_record(plan, name, 1, step_s=slower * step_s)
            placement = record.placement.model_copy(update={"device": f"NVIDIA {card}"})
            path = Path(f"cards/{card}/{name}.json")
            write_record(path, record.model_copy(update={"placement": placement}))
    return plan_of({}, data=None, comm=None, scale=None, report={"scaling_records": ["cards/*/*.json"]})


def test_the_same_series_of_two_cards_are_two_groups_of_rates_and_no_scaling() -> None:
    plan = of_two_cards()
    rows = csv("half-precision", plan)
    ours = rows[rows.source == "series, synthetic input"]
    assert list(ours.hardware) == ["1 × NVIDIA A100", "1 × NVIDIA H200", "1 × NVIDIA A100", "1 × NVIDIA H200"]
    assert list(ours.ratio) == pytest.approx([1, 1, 4, 4])
    assert "on 1 × NVIDIA H200" in lines(gather(plan))["Speed"]
    assert "A100" not in lines(gather(plan))["Speed"]
    # One process is no scaling, however many records there are.
    assert [axes for axes in panels("scaling-measured", plan) if axes.axison] == []


def test_more_than_two_precisions_do_not_hide_one_another() -> None:
    plan = series_plan()
    for name in ("half", "fp32", "amp"):
        write_record(plan.scaling_record(name, 1), scaling_record(plan, name, 1))
    rates, _ = half_precision(gather(plan)).axes
    heights = [float(line.get_ydata()[0]) for line in rates.get_lines() if len(line.get_ydata()) == 1]
    assert len({round(height, 3) for height in heights if height > 0}) == 3
