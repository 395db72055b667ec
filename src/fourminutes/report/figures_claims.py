"""Figures of the experiments: accuracy by batch size, and how each arm was tuned."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fourminutes.record import Trial
from fourminutes.report import words
from fourminutes.report.arms import Arm
from fourminutes.report.drawing import INK, PAGE_IN, PAPER, TEXT, new_figure, panel_grid, say_empty, series
from fourminutes.report.evidence import Evidence

_NO_SWEEP = "No sweep has been recorded yet."
_GRID_COLUMNS = 4
_VALUE_TICKS = 5
Key = TypeVar("Key", str, int)

# Families stand a little apart, as a factor on the batch, so that their bars don't cover one another.
_APART = 1.05
_CHOSEN: dict[str, Any] = {
    "color": INK,
    "marker": "o",
    "markersize": 8,
    "fillstyle": "none",
    "markeredgewidth": 0.9,
    "linestyle": "",
}


def batch_size(evidence: Evidence) -> Figure:
    """Top-1 on the reported pictures by batch, one panel a network, one line a family of arms."""
    measured = [arm for arm in evidence.arms if arm.accuracy]
    networks = {name: _over_batches(arms) for name, arms in _grouped(measured, _network).items()}
    figure, panels = new_figure(PAGE_IN, 2.8, max(len(networks), 1), sharex=True, sharey=True)
    if not measured:
        say_empty(panels, _NO_SWEEP)
        return figure
    shown = [arm for arms in networks.values() for arm in arms]
    looks = {family: index for index, family in enumerate(_grouped(shown, _family))}
    for (network, inside), axes in zip(networks.items(), panels, strict=True):
        families = _grouped(inside, _family)
        for place, (family, arms) in enumerate(families.items()):
            _accuracy_line(axes, looks[family], _APART ** (place - (len(families) - 1) / 2), arms)
        axes.set(title=f"Top-1 of {network}, %", xlabel="batch, images; below it the steps of an epoch")
        _batch_axis(axes, measured)
    handles = [_line_handle(index, family) for family, index in looks.items()]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _over_batches(arms: list[Arm]) -> list[Arm]:
    """The arms of families with several batches, and of the others those at a batch that no such line passes."""
    batches = {family: {_batch(arm) for arm in group} for family, group in _grouped(arms, _family).items()}
    lines = {family for family, own in batches.items() if len(own) > 1}
    passed = {batch for family in lines for batch in batches[family]}
    return [arm for arm in arms if arm.family in lines or _batch(arm) not in passed]


def _grouped(arms: list[Arm], key: Callable[[Arm], Key]) -> dict[Key, list[Arm]]:
    """The arms by what `key` says of them, in the order in which that first comes up."""
    groups: dict[Key, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(key(arm), []).append(arm)
    return groups


def _family(arm: Arm) -> str:
    return arm.family


def _batch(arm: Arm) -> int:
    return arm.record.settings.batch.global_batch


def _network(arm: Arm) -> str:
    return words.model_name(arm.record.settings.model)


def _accuracy_line(axes: Axes, index: int, shift: float, arms: list[Arm]) -> None:
    """The means of one family over rising batches, each times `shift`, with their 95 % intervals."""
    points = [(_batch(arm), arm.accuracy) for arm in sorted(arms, key=_batch) if arm.accuracy]
    look = series(index)
    axes.errorbar(
        [batch * shift for batch, _ in points],
        [accuracy.mean for _, accuracy in points],
        yerr=[
            [accuracy.mean - accuracy.interval_95.low for _, accuracy in points],
            [accuracy.interval_95.high - accuracy.mean for _, accuracy in points],
        ],
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markersize=3.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.4,
        elinewidth=0.9,
        capsize=2,
    )


def _batch_axis(axes: Axes, arms: list[Arm]) -> None:
    steps = {_batch(arm): arm.record.steps_per_epoch for arm in arms}
    axes.set_xscale("log")
    axes.set_xlim(min(steps) / 1.4, max(steps) * 1.4)
    axes.set_xticks(sorted(steps), [f"{batch:,}\n{steps[batch]:,}" for batch in sorted(steps)])
    axes.xaxis.set_minor_locator(NullLocator())


def _line_handle(index: int, label: str) -> Line2D:
    look = series(index)
    return Line2D([], [], color=look.colour, linestyle=look.dash, marker=look.marker, label=label)


def tuning(evidence: Evidence) -> Figure:
    """Accuracy on the choosing pictures by the value tried, one panel a family, one line a batch."""
    tuned = [arm for arm in evidence.arms if arm.tuning_trials]
    families = _grouped(tuned, _family)
    figure, panels = panel_grid(max(len(families), 1), _GRID_COLUMNS, 1.9, sharey=True)
    if not families:
        say_empty(panels, _NO_SWEEP)
        return figure
    looks = {batch: index for index, batch in enumerate(sorted(_grouped(tuned, _batch)))}
    for (family, arms), axes in zip(families.items(), panels, strict=True):
        for arm in arms:
            _tuning_line(axes, looks[_batch(arm)], arm)
        axes.set(title=family, xlabel=words.joined(sorted({arm.record.key for arm in arms})))
        _value_axis(axes, arms)
    panels[0].set_ylim(bottom=0)
    figure.supylabel("top-1 on the choosing pictures, %", fontsize=7.5, color=TEXT)
    handles = [_line_handle(index, f"batch {batch:,}") for batch, index in looks.items()]
    figure.legend(handles=handles + _tuning_handles(), loc="outside upper left", ncols=4)
    return figure


def _tuning_line(axes: Axes, index: int, arm: Arm) -> None:
    """The mean of every value, each trial as a point, what diverged as a cross, the chosen value ringed."""
    look = series(index)
    means = _means(arm)
    axes.plot(list(means), list(means.values()), color=look.colour, linestyle=look.dash, lw=1)
    for trial in arm.tuning_trials:
        cross: dict[str, Any] = {"marker": "x", "clip_on": False}
        style = cross if trial.diverged else {"marker": look.marker, "markersize": 3}
        axes.plot(trial.value, arm.tune_percent(trial), color=look.colour, linestyle="", zorder=3, **style)
    if arm.record.chosen in means:
        axes.plot(arm.record.chosen, means[arm.record.chosen], **_CHOSEN)


def _means(arm: Arm) -> dict[float, float]:
    """Mean accuracy of every value that was tried, as the choice sees it, by rising value."""
    by_value: dict[float, list[Trial]] = {}
    for trial in sorted(arm.tuning_trials, key=lambda trial: trial.value):
        by_value.setdefault(trial.value, []).append(trial)
    return {value: fmean(arm.tune_percent(trial) for trial in trials) for value, trials in by_value.items()}


def _value_axis(axes: Axes, arms: list[Arm]) -> None:
    """Ticks at values that were tried, not at each of them where there are many."""
    values = sorted({trial.value for arm in arms for trial in arm.tuning_trials})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values[:: -(-len(values) // _VALUE_TICKS)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _tuning_handles() -> list[Line2D]:
    return [
        Line2D([], [], color=INK, marker=".", linestyle="", label="one trial; lines join means"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="diverged, counted as 0 %"),
        Line2D([], [], **{**_CHOSEN, "markersize": 6}, label="chosen"),
    ]
