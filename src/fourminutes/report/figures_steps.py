"""Figures of single steps: how a traced step's communication lies beside its computing."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fourminutes.record import TracedSpan, TracedStep
from fourminutes.report.drawing import COLOURS, INK, PAPER, QUIET, panel_grid, say_empty
from fourminutes.report.evidence import Evidence

#: What happens to a bucket, as the record's spans begin with it: label, colour.
_STRETCHES = {
    "queued": ("queued", "#dfe4e9"),
    "cast": ("cast", COLOURS[5]),
    "all_reduce": ("all-reduce", COLOURS[0]),
    "reduce": ("reduce", COLOURS[1]),
    "reduce_scatter": ("reduce-scatter", COLOURS[3]),
    "broadcast": ("broadcast", COLOURS[4]),
    "all_gather": ("all-gather", COLOURS[2]),
    "divide": ("divide", "#b6c2cd"),
}


def overlap(evidence: Evidence) -> Figure:
    """One panel a run with a traced step, one row a bucket."""
    traced = [
        (run.label, run.record.reduction.traced)
        for run in evidence.runs
        if run.record.reduction and run.record.reduction.traced
    ]
    figure, panels = panel_grid(max(1, len(traced)), 2, 2.2)
    if not traced:
        say_empty(panels, "No step of a run over several processes has been traced yet (reduce.trace_step).")
        return figure
    for axes, (label, step) in zip(panels, traced, strict=False):
        _draw(axes, label, step)
    used = {_kind(span) for _, step in traced for span in step.spans}
    handles = [Patch(color=colour, label=name) for kind, (name, colour) in _STRETCHES.items() if kind in used]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.2, columnspacing=1.2)
    return figure


def _draw(axes: Axes, label: str, step: TracedStep) -> None:
    for span in step.spans:
        width_ms = 1e3 * (span.end_s - span.start_s)
        _, colour = _STRETCHES.get(_kind(span), ("", QUIET))
        axes.barh(span.bucket, width_ms, left=1e3 * span.start_s, height=0.7, color=colour, edgecolor=PAPER, lw=0.2)
    axes.axvline(1e3 * _last_ready_s(step.spans), color=INK, lw=0.8)
    axes.set_title(f"{label}, step {step.step}: {step.hidden_percent:.0f} % hidden", color=INK)
    axes.set(xlabel="time, ms", ylabel="bucket", xlim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.grid(visible=False)


def _last_ready_s(spans: Sequence[TracedSpan]) -> float:
    return max(span.start_s for span in spans if span.name == "queued")


def _kind(span: TracedSpan) -> str:
    """The key of `_STRETCHES`: a stage is told by its collective."""
    return span.name.split(",")[0].split(" ")[0]
