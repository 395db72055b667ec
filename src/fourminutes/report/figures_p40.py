"""The paper's cluster by the model: intervals, and the published values on them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fourminutes.facts import Certainty
from fourminutes.report import words
from fourminutes.report.drawing import COLOURS, INK, PAGE_IN, TEXT, filling, new_figure
from fourminutes.report.evidence import Evidence
from fourminutes.report.tables_p40 import facts_of
from fourminutes.scale.p40 import Predicted, predictions

_TITLES = {
    "minutes": "Training, minutes",
    "efficiency": "Efficiency, %",
    "speed-up": "Times the unfused ring's rate",
}
_BAR = COLOURS[4]


def p40(_evidence: Evidence) -> Figure:
    """One panel a quantity, one bar a point: 95 % of what the ranges give, the median a line in it."""
    figure, panels = new_figure(PAGE_IN, 2.3, len(_TITLES))
    for axes, (quantity, title) in zip(panels, _TITLES.items(), strict=True):
        _draw(axes, [one for one in predictions() if one.point.quantity == quantity])
        axes.set_title(title)
    handles = [
        Patch(color=_BAR, label="predicted, 95 %"),
        Line2D([], [], color=COLOURS[0], lw=1.6, label="its median"),
        Line2D([], [], color=INK, marker="D", ls="", label="published", **filling(INK, Certainty.CONFIRMED)),
        Line2D([], [], color=INK, marker="D", ls="", label="unconfirmed", **filling(INK, Certainty.UNCONFIRMED)),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _draw(axes: Axes, points: Sequence[Predicted]) -> None:
    for row, one in enumerate(points):
        axes.barh(row, one.high - one.low, left=one.low, height=0.5, color=_BAR, alpha=0.7, lw=0)
        axes.plot([one.median] * 2, [row - 0.25, row + 0.25], color=COLOURS[0], lw=1.6, solid_capstyle="butt")
        for fact in reversed(facts_of(one.point)):
            axes.plot(
                fact.value, row, color=INK, marker="D", ls="", zorder=4, clip_on=False, **filling(INK, fact.certainty)
            )
    names = [f"{words.PAPER_MODELS[one.point.model]}\n{one.point.devices:,} P40" for one in points]
    axes.set_yticks(range(len(points)), names, color=TEXT)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
