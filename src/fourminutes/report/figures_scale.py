"""Figures that stand beside published numbers: scaling, the paper's scalability, other systems."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fourminutes.record import Prediction
from fourminutes.report.drawing import (
    COLOURS,
    DASHED,
    INK,
    PAGE_IN,
    QUIET,
    TEXT,
    filling,
    least_sure,
    new_figure,
    plain_ticks,
    series,
)
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.labels import place_labels
from fourminutes.report.published import Certainty, Fact, System, published

_PREDICTED: tuple[Any, ...] = (DASHED, (0, (1, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_PUBLISHED = {"AlexNet": "s", "ResNet-50": "D"}
_SAID = {Certainty.CONFIRMED: "published", Certainty.DERIVED: "derived", Certainty.UNCONFIRMED: "unconfirmed"}


def scaling(evidence: Evidence) -> Figure:
    """Efficiency and throughput by number of processes: measured solid, predicted dashed, published black."""
    figure, (efficiency, rate) = new_figure(PAGE_IN, 2.8, 2)
    handles = _draw_predictions(evidence, efficiency, rate)
    handles += _draw_measured(evidence, efficiency, rate)
    handles += _draw_published(efficiency, rate)
    efficiency.set(title="Efficiency, % of one process scaled up", ylim=(0, 105))
    rate.set(title="Images/s", yscale="log")
    plain_ticks(rate.yaxis)
    for axes in (efficiency, rate):
        axes.set_xscale("log", base=2)
        plain_ticks(axes.xaxis)
        axes.set_xlabel("processes (devices)")
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _draw_predictions(evidence: Evidence, efficiency: Axes, rate: Axes) -> list[Line2D]:
    """A run has its colour, an algorithm its dash."""
    lines: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in evidence.scale.record.predictions if evidence.scale else ():
        lines.setdefault((prediction.run, prediction.algorithm), []).append(prediction)
    runs, algorithms = (list(dict.fromkeys(keys)) for keys in (zip(*lines, strict=True) if lines else ((), ())))
    for (run, algorithm), points in lines.items():
        look = {
            "color": _run_colour(evidence, run),
            "ls": _PREDICTED[algorithms.index(algorithm) % len(_PREDICTED)],
            "lw": 1.1,
        }
        x = [point.processes for point in points]
        efficiency.plot(x, [point.efficiency_percent for point in points], **look)
        rate.plot(x, [point.images_per_s for point in points], **look)
    names = [Line2D([], [], color=_run_colour(evidence, run), ls=DASHED, lw=1.1, label=run) for run in runs]
    kinds = [
        Line2D([], [], color=QUIET, ls=_PREDICTED[index % len(_PREDICTED)], lw=1.1, label=f"predicted, {algorithm}")
        for index, algorithm in enumerate(algorithms)
    ]
    return names + kinds


def _run_colour(evidence: Evidence, name: str) -> str:
    """The colour that the run has in the other figures."""
    names = [run.record.run for run in evidence.runs]
    return series(names.index(name)).colour if name in names else QUIET


def _draw_measured(evidence: Evidence, efficiency: Axes, rate: Axes) -> list[Line2D]:
    if not evidence.runs:
        return []
    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 3.8}
    for index, run in enumerate(evidence.runs):
        colour = series(index).colour
        rate.plot(run.record.settings.processes, run.images_per_s, color=colour, **look)
        if percent := _efficiency(run, evidence.runs):
            efficiency.plot(run.record.settings.processes, percent, color=colour, **look)
    return [Line2D([], [], label="measured", color=QUIET, **look)]


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


def _draw_published(efficiency: Axes, rate: Axes) -> list[Line2D]:
    """Draw the paper's points; return one handle for each look that occurs, the surest first."""
    looks = {
        _published_point(efficiency, point.model, point.accelerators, point.percent)
        for point in published().efficiencies
    }
    looks |= {
        _published_point(rate, line.model, line.accelerators.value, line.images_per_s)
        for line in published().headline
        if line.accelerators and line.images_per_s
    }
    return [
        Line2D([], [], label=f"{model}, P40, {_SAID[certainty]}", **_published_look(model, certainty))
        for certainty in Certainty
        for model in _PUBLISHED
        if (model, certainty) in looks
    ]


def _published_point(axes: Axes, model: str, accelerators: float, fact: Fact) -> tuple[str, Certainty]:
    # What is confirmed is drawn over what is not.
    order = 3 if fact.certainty is Certainty.UNCONFIRMED else 4
    axes.plot(accelerators, fact.value, zorder=order, **_published_look(model, fact.certainty))
    return model, fact.certainty


def _published_look(model: str, certainty: Certainty) -> dict[str, Any]:
    return {"color": INK, "marker": _PUBLISHED[model], "ls": "", **filling(INK, certainty)}


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
        Line2D([], [], color=TEXT, marker="o", ls="", label=f"a number {_SAID[certainty]}", **filling(TEXT, certainty))
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
