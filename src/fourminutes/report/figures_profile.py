"""When gradients come during the backward pass on one device."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fourminutes.record import ProfileRecord
from fourminutes.report import words
from fourminutes.report.drawing import DASHED, QUIET, panel_grid, say_empty, series
from fourminutes.report.evidence import Evidence
from fourminutes.scale.profile import by_arithmetic


def profile(evidence: Evidence) -> Figure:
    """One panel a network: the share of the gradients that is there by share of the backward pass."""
    records = [one.record for one in evidence.profiles]
    models = list(dict.fromkeys(words.model_name(record.model) for record in records))
    figure, panels = panel_grid(max(1, len(models)), 2, 2.3)
    if not records:
        say_empty(panels, "No profile has been recorded yet (fourminutes scale profile).")
        return figure
    labels = list(dict.fromkeys(map(_label, records)))
    for axes, model in zip(panels, models, strict=True):
        own = [record for record in records if words.model_name(record.model) == model]
        for record in own:
            look = series(labels.index(_label(record)))
            _steps(axes, record, color=look.colour, ls=look.dash, lw=1.3)
        _steps(axes, by_arithmetic(own[0]), color=QUIET, ls=DASHED, lw=1.1)
        axes.set(title=f"{model}: gradients there, %", xlim=(0, 100), ylim=(0, 102))
        axes.set_xlabel("of the backward pass, %")
    looks = [series(place) for place in range(len(labels))]
    handles = [
        Line2D([], [], label=label, color=look.colour, ls=look.dash, lw=1.3)
        for label, look in zip(labels, looks, strict=True)
    ]
    handles.append(Line2D([], [], label="by multiplications alone", color=QUIET, ls=DASHED, lw=1.1))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.4)
    return figure


def _label(record: ProfileRecord) -> str:
    origin = "" if record.origin == "measured" else f", {record.origin}"
    return f"{record.device}, {record.precision}, {words.count(record.images, 'image')}{origin}"


def _steps(axes: Axes, record: ProfileRecord, **look: object) -> None:
    """The share of the gradients as it rises with every layer."""
    whole, come = sum(layer.parameters for layer in record.layers), 0
    xs, ys = [0.0], [0.0]
    for layer in sorted(record.layers, key=lambda layer: layer.ready_s):
        come += layer.parameters
        xs.append(100 * layer.ready_s / record.backward_s)
        ys.append(100 * come / whole)
    axes.step(xs, ys, where="post", **look)  # type: ignore[arg-type]
