"""Simulated against measured steps."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fourminutes.report import words
from fourminutes.report.drawing import COLOURS, PAGE_IN, QUIET, log_ticks, new_figure, say_empty, series
from fourminutes.report.evidence import Evidence
from fourminutes.scale.validate import Held, held_against

_BAND = 0.10
_HOLLOW: dict[str, Any] = {"markerfacecolor": "none"}


def validation(evidence: Evidence) -> Figure:
    """Simulated over measured step times at the left, and each model's error at the right."""
    figure, [times, errors] = new_figure(PAGE_IN, 3.0, 2)
    held = [
        (words.model_name(replay.record.settings.model), case)
        for replay in evidence.replays
        for case in held_against(replay.record)
    ]
    if not held:
        say_empty([times, errors], "No step has been replayed yet (fourminutes scale replay).")
        return figure
    names = list(dict.fromkeys(name for name, _ in held))
    for name, case in held:
        look = series(names.index(name))
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "ls": "", "markersize": 4}
        style |= _HOLLOW if case.settings.tensors == "small" else {}
        times.plot(case.measured_s, case.simulated_s, **style)
        for row, percent in enumerate(_errors(case)):
            errors.plot(percent, row + 0.3 * (names.index(name) - (len(names) - 1) / 2), **style)
    ends = [0.8 * min(case.measured_s for _, case in held), 1.25 * max(case.measured_s for _, case in held)]
    times.plot(ends, ends, color=QUIET, lw=0.8)
    times.fill_between(
        ends, [(1 - _BAND) * end for end in ends], [(1 + _BAND) * end for end in ends], color=QUIET, alpha=0.2
    )
    times.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, title="Step, s: simulated over measured", xlabel="measured"
    )
    log_ticks(times.xaxis)
    log_ticks(times.yaxis)
    errors.axvspan(-100 * _BAND, 100 * _BAND, color=QUIET, alpha=0.2, lw=0)
    errors.set_yticks(range(3), ["simulation", "no overlap", "full overlap"])
    errors.set(ylim=(2.5, -0.5), title="Off by, %")
    errors.grid(visible=True, axis="x")
    handles = [
        Line2D([], [], color=series(i).colour, marker=series(i).marker, ls="", label=n) for i, n in enumerate(names)
    ]
    handles.append(Line2D([], [], color=COLOURS[0], marker="o", ls="", label="a call a small tensor", **_HOLLOW))
    figure.legend(handles=[*handles, Patch(color=QUIET, alpha=0.2, label="±10 %")], loc="outside lower center", ncols=4)
    return figure


def _errors(case: Held) -> tuple[float, float, float]:
    return case.error_percent, case.apart_percent, case.beside_percent
