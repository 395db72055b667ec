"""Throughput and efficiency by number of devices, one panel a network: measured, predicted, published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fourminutes.facts import Certainty, Fact
from fourminutes.record import Prediction
from fourminutes.report.drawing import (
    DASHED,
    QUIET,
    SAID,
    TEXT,
    Series,
    log_ticks,
    panel_grid,
    plain_ticks,
    published_look,
    published_point,
    series,
)
from fourminutes.report.evidence import Evidence, Run, paper_model
from fourminutes.report.published import published

OTHERS = "Other networks"
_MODELS = ("AlexNet", "ResNet-50")
_PREDICTED: tuple[Any, ...] = (DASHED, (0, (1, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKER = "D"
#: What the axes of devices and rates show at least, where the paper's points stand.
_DEVICES = (200, 4096)
_IMAGES_S = (1e5, 1e6)


@dataclass(frozen=True)
class _Quantity:
    """What a figure shows: of a prediction, of a run among others, and of what is published (model, devices, value)."""

    title: str
    predicted: Callable[[Prediction], float]
    measured: Callable[[Run, tuple[Run, ...]], float | None]
    published: tuple[tuple[str, float, Fact], ...]


def throughput(evidence: Evidence) -> Figure:
    """Images/s by number of devices."""
    facts = tuple(
        (line.model, line.accelerators.value, line.images_per_s)
        for line in published().headline
        if line.accelerators and line.images_per_s
    )
    quantity = _Quantity("images/s", lambda one: one.images_per_s, lambda run, _: run.images_per_s, facts)
    figure, panels = _figure(evidence, quantity)
    for place, axes in enumerate(panels):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        least, most = _IMAGES_S if place < len(_MODELS) else (low, high)
        axes.set_ylim(min(low / 2, least), max(high * 2, most))
        log_ticks(axes.yaxis)
    return figure


def efficiency(evidence: Evidence) -> Figure:
    """Efficiency by number of devices, in percent of as many single ones."""
    facts = tuple((point.model, float(point.accelerators), point.percent) for point in published().efficiencies)
    figure, panels = _figure(evidence, _Quantity("%", lambda one: one.efficiency_percent, _efficiency, facts))
    for axes in panels:
        axes.set_ylim(0, 105)
    return figure


def _figure(evidence: Evidence, quantity: _Quantity) -> tuple[Figure, list[Axes]]:
    lines = _lines(evidence)
    models = [*_MODELS, *([OTHERS] if _has_others(evidence, lines) else [])]
    figure, panels = panel_grid(len(models), 3, 2.3)
    for axes, model in zip(panels, models, strict=True):
        _draw(axes, model, evidence, lines, quantity)
        axes.set_title(f"{model}, {quantity.title}")
        axes.set_xscale("log", base=2)
        if model != OTHERS:
            low, high = axes.get_xlim()
            axes.set_xlim(min(low, _DEVICES[0]), max(high, _DEVICES[1]))
        plain_ticks(axes.xaxis)
        axes.set_xlabel("devices (processes)")
    handles = _handles(evidence, lines, quantity)
    figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(handles)), columnspacing=1.4)
    return figure, panels


_Lines = dict[tuple[str, str], list[Prediction]]


def _lines(evidence: Evidence) -> _Lines:
    """The predictions of each run and algorithm, by rising number of processes."""
    lines: _Lines = {}
    for prediction in evidence.scale.record.predictions if evidence.scale else ():
        lines.setdefault((prediction.run, prediction.algorithm), []).append(prediction)
    return {key: sorted(points, key=lambda point: point.processes) for key, points in lines.items()}


def _has_others(evidence: Evidence, lines: _Lines) -> bool:
    models = [run.model for run in evidence.runs] + [_model_of(evidence, run) for run, _ in lines]
    return None in models


def _model_of(evidence: Evidence, name: str) -> str | None:
    """The network of a run that predictions are made from."""
    recorded = {run.record.run: run.record.settings for run in evidence.runs}
    settings = recorded.get(name) or evidence.plan.runs.get(name)
    return paper_model(settings) if settings else None


def _draw(axes: Axes, model: str, evidence: Evidence, lines: _Lines, quantity: _Quantity) -> None:
    for (run, algorithm), points in lines.items():
        if (_model_of(evidence, run) or OTHERS) == model:
            values = [quantity.predicted(point) for point in points]
            look = {"color": _colour(evidence, run), "ls": _dash(lines, algorithm), "lw": 1.1}
            axes.plot([point.processes for point in points], values, **look)
    for one in evidence.runs:
        value = quantity.measured(one, evidence.runs)
        if value is not None and (one.model or OTHERS) == model:
            axes.plot(one.record.settings.processes, value, **_measured_look(evidence, one.record.run))
    for published_model, devices, fact in quantity.published:
        if published_model == model:
            published_point(axes, devices, fact.value, _MARKER, fact.certainty)


def _measured_look(evidence: Evidence, name: str) -> dict[str, Any]:
    looks = _looks(evidence, name)
    marker = looks.marker if looks else "o"
    return {"color": _colour(evidence, name), "marker": marker, "ls": "", "markersize": 4.2, "clip_on": False}


def _colour(evidence: Evidence, name: str) -> str:
    looks = _looks(evidence, name)
    return looks.colour if looks else QUIET


def _looks(evidence: Evidence, name: str) -> Series | None:
    """The looks that the run has in the other figures."""
    names = [slot.record.run if isinstance(slot, Run) else slot.run for slot in evidence.slots]
    return series(names.index(name)) if name in names else None


def _dash(lines: _Lines, algorithm: str) -> Any:
    algorithms = list(dict.fromkeys(name for _, name in lines))
    return _PREDICTED[algorithms.index(algorithm) % len(_PREDICTED)]


def _handles(evidence: Evidence, lines: _Lines, quantity: _Quantity) -> list[Line2D]:
    """Published points by their filling, the surest first, runs by their colour, algorithms by their dash."""
    said = {fact.certainty for *_, fact in quantity.published}
    points = [
        Line2D([], [], label=f"{SAID[certainty]}, P40", **published_look(_MARKER, certainty))
        for certainty in Certainty
        if certainty in said
    ]
    measured = [one for one in evidence.runs if quantity.measured(one, evidence.runs) is not None]
    runs = [
        Line2D([], [], label=f"measured, {run.label}", **_measured_look(evidence, run.record.run)) for run in measured
    ]
    shown = {one.record.run for one in measured}
    sources = [
        Line2D([], [], color=_colour(evidence, run), ls=DASHED, lw=1.1, label=f"from {run}")
        for run in dict.fromkeys(run for run, _ in lines)
        if run not in shown
    ]
    algorithms = dict.fromkeys(algorithm for _, algorithm in lines)
    dashes = [
        Line2D([], [], color=TEXT, ls=_dash(lines, algorithm), lw=1.1, label=f"predicted, {algorithm}")
        for algorithm in algorithms
    ]
    return points + runs + dashes + sources


def _efficiency(run: Run, runs: tuple[Run, ...]) -> float | None:
    """Efficiency in percent, where the same work was also measured on one process."""
    processes = run.record.settings.processes
    alone = next((one for one in runs if one.record.settings.processes == 1 and _work(one) == _work(run)), None)
    if processes == 1 or alone is None:
        return None
    return 100 * run.images_per_s / (processes * alone.images_per_s)


def _work(run: Run) -> tuple[object, ...]:
    """What must be equal for two runs' rates to be compared: the work of one process and what does it."""
    settings = run.record.settings
    device = run.record.provenance.cpu if run.record.placement.device == "cpu" else run.record.placement.device
    return (
        run.record.dataset_hash,
        settings.model,
        settings.batch.per_device,
        settings.micro_batches,
        settings.optimizer.kind,
        settings.precision,
        settings.threads,
        device,
    )
