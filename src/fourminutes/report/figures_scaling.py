"""The figure of measured series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fourminutes.report.drawing import DASHED, PAGE_IN, QUIET, log_ticks, new_figure, plain_ticks, say_empty, series
from fourminutes.report.evidence import Evidence
from fourminutes.report.scalings import Estimated, Scaling

_LEAST_TOP, _MOST_OF_A_BAR = 105.0, 150.0


def measured_scaling(evidence: Evidence) -> Figure:
    """Efficiency and throughput by number of processes, one line a series, beside the ideal."""
    figure, (efficiency, rate) = new_figure(PAGE_IN, 2.6, 2)
    several = _series(evidence.scalings)
    if not several:
        say_empty([efficiency, rate], "No series has been measured at several numbers of processes yet.")
        return figure
    handles = []
    for index, (label, points) in enumerate(several.items()):
        look = _look(index, points[0])
        _draw(efficiency, [(one.record.processes, one.of_process) for one in points], look)
        _draw(rate, [(one.record.processes, one.rate) for one in points], look)
        _draw_ideal(rate, points)
        handles.append(Line2D([], [], label=_told(label, points[0].record.measured.mode), **look))
    efficiency.axhline(100, color=QUIET, lw=1, zorder=1)
    handles.append(Line2D([], [], color=QUIET, lw=1, label="ideal"))
    _finish(efficiency, rate, [one for points in several.values() for one in points])
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _series(scalings: Sequence[Scaling]) -> dict[str, list[Scaling]]:
    """Those of several numbers of processes, by label, each by rising number of processes."""
    by_label: dict[str, list[Scaling]] = {}
    for one in sorted(scalings, key=lambda one: one.record.processes):
        by_label.setdefault(one.label, []).append(one)
    return {label: points for label, points in sorted(by_label.items()) if len({_size(one) for one in points}) > 1}


def _size(one: Scaling) -> int:
    return one.record.processes


def _told(label: str, mode: str) -> str:
    """The series with its mode, where its name does not say it."""
    return label if mode in label else f"{label} ({mode})"


def _look(index: int, one: Scaling) -> dict[str, Any]:
    look = series(index)
    dash = "-" if one.record.measured.mode == "weak" else DASHED
    return {"color": look.colour, "marker": look.marker, "linestyle": dash, "markersize": 4, "lw": 1.2}


def _draw(axes: Axes, points: Sequence[tuple[int, Estimated | None]], look: dict[str, Any]) -> None:
    """The points that there are, with their intervals as bars."""
    known = [(processes, estimated) for processes, estimated in points if estimated is not None]
    if not known:
        return
    bars = [
        [estimated.value - estimated.low for _, estimated in known],
        [estimated.high - estimated.value for _, estimated in known],
    ]
    x, y = [processes for processes, _ in known], [estimated.value for _, estimated in known]
    axes.errorbar(x, y, yerr=bars, elinewidth=0.9, capsize=2.5, **look)


def _draw_ideal(rate: Axes, points: Sequence[Scaling]) -> None:
    """The rate of the smallest number of processes, scaled up to the largest."""
    sizes = [one.record.processes for one in points]
    rate.plot(sizes, [points[0].rate.value * size / sizes[0] for size in sizes], color=QUIET, lw=1, zorder=1)


def _finish(efficiency: Axes, rate: Axes, scalings: Sequence[Scaling]) -> None:
    known = [one.of_process for one in scalings if one.of_process]
    # Every point, but not all of a bar that would leave the others no room.
    highest = max(
        [_LEAST_TOP, *(share.value for share in known), *(min(share.high, _MOST_OF_A_BAR) for share in known)]
    )
    efficiency.set(title="Efficiency, % of one process scaled up", ylim=(0, 1.02 * highest))
    rate.set(title="Images/s", yscale="log")
    log_ticks(rate.yaxis)
    for axes in (efficiency, rate):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({one.record.processes for one in scalings}))
        plain_ticks(axes.xaxis)
        axes.set_xlabel("processes (devices)")
        axes.margins(x=0.08)
