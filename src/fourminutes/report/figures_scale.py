"""Figures of published numbers alone: the paper's scalability, other systems."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fourminutes.facts import Certainty
from fourminutes.report.drawing import (
    COLOURS,
    DASHED,
    PAGE_IN,
    QUIET,
    SAID,
    TEXT,
    filling,
    least_sure,
    new_figure,
    plain_ticks,
    series,
)
from fourminutes.report.evidence import Evidence
from fourminutes.report.labels import place_labels
from fourminutes.report.published import System, published


def scalability(_evidence: Evidence) -> Figure:
    """The paper's own curves: images/s, and their share of its ideal."""
    figure, (rate, share) = new_figure(PAGE_IN, 2.6, 2)
    facts = published().scalability
    ideal = facts.curves[0].images_per_s
    rate.plot(facts.accelerators, ideal, color=QUIET, ls=DASHED, lw=1, label="ideal")
    for index, curve in enumerate(facts.curves[1:]):
        look = series(index)
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "ls": look.dash, "label": curve.name}
        style |= filling(look.colour, facts.certainty)
        rate.plot(facts.accelerators, curve.images_per_s, **style)
        percents = [100 * value / top for value, top in zip(curve.images_per_s, ideal, strict=True)]
        share.plot(facts.accelerators, percents, **style)
        share.annotate(
            f"{percents[-1]:.0f}",
            (facts.accelerators[-1], percents[-1]),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    rate.set(title=f"Images/s, read to about ±{facts.reading_error_images_per_s:.0f}", ylim=(0, None))
    plain_ticks(rate.yaxis)
    share.set(title="Share of the ideal, %", ylim=(50, 102))
    for axes in (rate, share):
        axes.set_xticks(facts.accelerators)
        axes.set_xlabel("devices (P40)")
    figure.legend(handles=rate.get_lines(), loc="outside right center")
    return figure


_GROUP_LOOKS = {
    "compared": ("o", COLOURS[0], "compared in the paper"),
    "paper": ("*", COLOURS[3], "the paper"),
    "after": ("^", COLOURS[2], "after it"),
    "mlperf": ("D", QUIET, "MLPerf"),
}


def systems(_evidence: Evidence) -> Figure:
    """Training time by number of devices, for every system whose two numbers are known."""
    figure, [axes] = new_figure(PAGE_IN, 4.2)
    drawn = [system for system in published().systems if system.minutes and system.accelerators]
    axes.set(xscale="log", yscale="log", xlim=(5.5, 7000), ylim=(0.13, 3000), xlabel="devices", title="Minutes")
    texts: dict[tuple[float, float], str] = {}
    lines: dict[str, list[tuple[float, float]]] = {}
    for system in drawn:
        label, point = _label(system), _system_point(axes, system)
        texts[point] = "" if label in lines else label
        lines.setdefault(label, []).append(point)
    for points in lines.values():
        axes.plot(*zip(*sorted(points), strict=True), color=QUIET, lw=0.6, zorder=1)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.grid(visible=True, axis="both")
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", markersize=7 if marker == "*" else 4, label=label)
        for marker, colour, label in _GROUP_LOOKS.values()
    ]
    handles += [
        Line2D([], [], color=TEXT, marker="o", ls="", label=f"a number {SAID[certainty]}", **filling(TEXT, certainty))
        for certainty in (Certainty.DERIVED, Certainty.UNCONFIRMED)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=6, columnspacing=1.4, handletextpad=0.2)
    place_labels(axes, texts, fontsize=6, color=TEXT)
    return figure


def _system_point(axes: Axes, system: System) -> tuple[float, float]:
    assert system.minutes is not None
    assert system.accelerators is not None
    marker, colour, _ = _GROUP_LOOKS[system.group]
    certainty = least_sure(system.minutes, system.accelerators)
    big = marker == "*"
    axes.plot(
        system.accelerators.value,
        system.minutes.value,
        color=colour,
        marker=marker,
        markersize=10 if big else 4.2,
        zorder=4 if big else 3,
        ls="",
        **filling(colour, certainty),
    )
    return system.accelerators.value, system.minutes.value


def _label(system: System) -> str:
    named = system.model == "AlexNet" or system.group == "paper"
    parts = (system.who, system.hardware.value if system.hardware else "", system.model if named else "")
    return ", ".join(part for part in parts if part)
