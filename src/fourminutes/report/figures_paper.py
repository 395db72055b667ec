"""Figures of the paper's ablations, its half precision and its step counts, with the recorded runs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fourminutes.comm.fit import cost_terms
from fourminutes.facts import Certainty, Fact
from fourminutes.report import words
from fourminutes.report.drawing import (
    COLOURS,
    DASHED,
    INK,
    PAGE_IN,
    QUIET,
    SAID,
    TEXT,
    log_ticks,
    new_figure,
    plain_ticks,
    published_look,
    published_point,
)
from fourminutes.report.evidence import Evidence
from fourminutes.report.matches import matching
from fourminutes.report.precisions import Rate, groups
from fourminutes.report.published import Ablation, published
from fourminutes.report.repeats import Mean, mean_of

_PUBLISHED, _RING, _OWN = "D", "s", "o"


def ablations(evidence: Evidence) -> Figure:
    """Top-1 by technique, one panel a network: the paper's baseline and steps, and the recorded runs that match."""
    figure, panels = new_figure(PAGE_IN, 2.4, 2)
    for axes, model in zip(panels, ("AlexNet", "ResNet-50"), strict=True):
        _draw_ablations(axes, model, evidence)
    recorded = any(matching(row, evidence) for row in published().ablations)
    own = "recorded" if recorded else "recorded: none yet"
    handles = [
        *_published_handles((Certainty.CONFIRMED, Certainty.UNCONFIRMED)),
        Line2D([], [], label=own, **_own_look()),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    return figure


def _draw_ablations(axes: Axes, model: str, evidence: Evidence) -> None:
    baseline = next(line for line in published().headline if line.model == model and not line.accelerators)
    assert baseline.top1_percent is not None
    rows = [row for row in published().ablations if row.model == model]
    names = [f"baseline, batch {baseline.batch.value:.0f}", *(_technique(row, rows) for row in rows)]
    published_point(axes, baseline.top1_percent.value, 0, _PUBLISHED, baseline.top1_percent.certainty)
    axes.axvline(baseline.top1_percent.value, color=QUIET, lw=0.8, ls=DASHED, zorder=1)
    for place, row in enumerate(rows, start=1):
        published_point(axes, row.top1_percent.value, place, _PUBLISHED, row.top1_percent.certainty)
        if runs := matching(row, evidence):
            _draw_own(axes, mean_of([run.record.final.top1_percent for run in runs]), place + 0.25)
    axes.set_yticks(range(len(names)), names, color=TEXT)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(f"{model}, top-1 %")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.12)
    _lie_flat(axes)


def _technique(row: Ablation, rows: Sequence[Ablation]) -> str:
    """The row's change on two lines at most, with its epochs where another row has the same change."""
    twice = [one.change for one in rows].count(row.change) > 1
    text = f"{row.change}, {row.epochs.value:.0f} epochs" if twice and row.epochs else row.change
    words = text.split(" ")
    half = len(words) // 2 + len(words) % 2
    return text if len(text) < 20 else f"{' '.join(words[:half])}\n{' '.join(words[half:])}"


def _draw_own(axes: Axes, mean: Mean, place: float) -> None:
    axes.errorbar(mean.value, place, xerr=mean.half_width, elinewidth=1.3, **_own_look())


def _own_look() -> dict[str, Any]:
    return {"color": COLOURS[0], "marker": _OWN, "ls": "", "markersize": 4.5}


def _lie_flat(axes: Axes) -> None:
    """Rows from top to bottom: lines to compare along stand upright."""
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def _published_handles(certainties: Sequence[Certainty]) -> list[Line2D]:
    return [Line2D([], [], label=SAID[one], **published_look(_PUBLISHED, one)) for one in certainties]


#: Markers of the precisions, alike for published and recorded.
_PRECISIONS = {"fp32": "o", "half": "s", "half-lars": "P", "amp": "^", "bf16": "D"}
_TOLD_APART = 2


def half_precision(evidence: Evidence) -> Figure:
    """Images/s a device by precision, and times fp32's rate: the paper's pair, then each recorded group."""
    own = groups(evidence)
    figure, (rates, ratios) = new_figure(PAGE_IN, 1.7 + 0.32 * len(own), 2, sharey=True)
    _draw_published_pair(rates, ratios)
    for place, group in enumerate(own, start=1):
        for number, rate in enumerate(group):
            # More than two would hide one another.
            beside = 0.2 * (number - (len(group) - 1) / 2) if len(group) > _TOLD_APART else 0
            _draw_rate(rates, ratios, rate, place + beside)
    rates.set(title="Images/s a device", xscale="log")
    low, high = rates.get_xlim()
    rates.set_xlim(low / 1.3, high * 1.3)
    log_ticks(rates.xaxis, (1, 3))
    ratios.set(title="Times the rate in fp32")
    ratios.axvline(1, color=QUIET, lw=0.8, ls=DASHED, zorder=1)
    ratios.set_xlim(min(0.9, ratios.get_xlim()[0]), max(1.4, ratios.get_xlim()[1]))
    fact = published().half_precision
    names = [f"{fact.model}, {fact.accelerator}", *(_shared_name(group) for group in own)]
    rates.set_yticks(range(len(names)), names, color=TEXT)
    rates.set_ylim(len(own) + 0.5, -0.5)
    for axes in (rates, ratios):
        _lie_flat(axes)
    figure.legend(handles=_precision_handles(own), loc="outside lower left", ncols=4, columnspacing=1.4)
    return figure


def _shared_name(group: Sequence[Rate]) -> str:
    """A series by its network and batch; of runs what their names begin with, or the first one."""
    first = group[0]
    if first.kind == "series":
        return f"{words.model_name(first.settings.model)}, {words.count(first.settings.batch.per_device, 'image')}"
    parts = zip(*(rate.label.split("-") for rate in group), strict=False)
    shared = takewhile(lambda alike: len(set(alike)) == 1, parts)
    return "-".join(alike[0] for alike in shared) or group[0].label


def _draw_published_pair(rates: Axes, ratios: Axes) -> None:
    fact = published().half_precision
    for axes, precision, one, side in (
        (rates, "fp32", fact.fp32_images_per_s, "right"),
        (rates, "half", fact.half_images_per_s, "left"),
        (ratios, "half", fact.ratio, "center"),
    ):
        published_point(axes, one.value, 0, _PRECISIONS[precision], one.certainty)
        axes.annotate(f"{one.value:g}", (one.value, 0), (0, 6), textcoords="offset points", ha=side)


def _draw_rate(rates: Axes, ratios: Axes, rate: Rate, place: float) -> None:
    look = _precision_look(rate.settings.precision)
    if rate.images_per_s:
        rates.errorbar(rate.images_per_s.value, place, xerr=rate.images_per_s.half_width, elinewidth=1.3, **look)
    if rate.ratio is not None and rate.settings.precision != "fp32":
        ratios.plot(rate.ratio, place, **look)


def _precision_look(precision: str) -> dict[str, Any]:
    place = list(_PRECISIONS).index(precision)
    return {"color": COLOURS[place], "marker": _PRECISIONS[precision], "ls": "", "markersize": 4.5}


def _precision_handles(own: Sequence[Sequence[Rate]]) -> list[Line2D]:
    shown = {rate.settings.precision for group in own for rate in group if rate.images_per_s}
    mine = [Line2D([], [], label=f"recorded, {name}", **_precision_look(name)) for name in _PRECISIONS if name in shown]
    return [
        Line2D([], [], label="published, fp32", **published_look("o", Certainty.CONFIRMED)),
        Line2D([], [], label="published, half", **published_look("s", Certainty.CONFIRMED)),
        Line2D([], [], label="derived", **published_look("s", Certainty.DERIVED)),
        *(mine or [Line2D([], [], ls="", label="recorded: no two runs that differ in precision alone")]),
    ]


_GROUPS = (8, 16, 32)
_LARGEST = 4096
_GROUP_LOOKS: dict[int, tuple[str, Any]] = {
    8: (COLOURS[1], (0, (5, 1.5))),
    16: (COLOURS[0], (0, (3, 1.2, 1, 1.2))),
    32: (COLOURS[3], (0, (1, 1.2))),
}


def steps(_evidence: Evidence) -> Figure:
    """Transfers one after another by number of ranks: the equations dashed, the published counts on them."""
    figure, [axes] = new_figure(PAGE_IN, 2.9)
    ranks = [2**power for power in range(3, _LARGEST.bit_length())]
    axes.plot(ranks, [cost_terms("ring", p, p)[0] for p in ranks], color=INK, ls=DASHED, label="ring")
    for k in _GROUPS:
        colour, dash = _GROUP_LOOKS[k]
        whole = [p for p in ranks if p >= 2 * k]
        counts = [cost_terms("hierarchical", p, k)[0] for p in whole]
        axes.plot(whole, counts, color=colour, ls=dash, lw=1.5, label=f"hierarchical, groups of {k}")
    certainties = _draw_published_steps(axes)
    axes.set(xlabel="ranks", title="Steps, one after another", yscale="log", ylim=(10, 10_000))
    axes.set_xscale("log", base=2)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    points = [
        Line2D([], [], label=f"{name}, {SAID[one]}", **published_look(marker, one))
        for one in certainties
        for name, marker in (("ring", _RING), ("hierarchical", _PUBLISHED))
    ]
    figure.legend(handles=[*axes.get_lines()[: 1 + len(_GROUPS)], *points], loc="outside right center")
    return figure


def _draw_published_steps(axes: Axes) -> list[Certainty]:
    """The published counts of rings and of groups that have a line; what certainties there are among them."""
    points: list[tuple[float, Fact, str]] = []
    for row in published().steps:
        points.append((row.accelerators, row.ring, _RING))
        if row.group in _GROUPS:
            points.append((row.accelerators, row.hierarchical, _PUBLISHED))
    for ranks, fact, marker in points:
        published_point(axes, ranks, fact.value, marker, fact.certainty)
    return [one for one in Certainty if one in {fact.certainty for _, fact, _ in points}]
