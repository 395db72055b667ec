"""Figures of the user's own records: accuracy, where the time goes, the all-reduce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from fourminutes.record import CollectiveTiming, CommRecord
from fourminutes.report import words
from fourminutes.report.drawing import COLOURS, INK, PAGE_IN, PAPER, TEXT, log_ticks, new_figure, say_empty, series
from fourminutes.report.evidence import Evidence, Run, Wanted

#: Parts of a run's time: field of `StepTimes`, label, colour (light beside dark), and whether it is waiting.
TIME_PARTS = (
    ("forward_s", "forward", COLOURS[4], False),
    ("backward_s", "backward", COLOURS[0], False),
    ("input_wait_s", "waiting for input", COLOURS[3], True),
    ("exposed_reduce_s", "waiting for gradients", COLOURS[1], True),
    ("optimizer_s", "optimizer", COLOURS[2], False),
    ("evaluation_s", "evaluation", COLOURS[5], False),
    ("checkpoint_s", "checkpoint", "#b6c2cd", False),
    ("other_s", "other", "#dfe4e9", False),
)

#: At most so many markers a line, lest they cover it.
_MARKERS = 20


def accuracy(evidence: Evidence) -> Figure:
    """Top-1 over epochs and over time, one line a run."""
    figure, (by_epoch, by_time) = new_figure(PAGE_IN, 2.6, 2, sharey=True)
    if not evidence.runs:
        say_empty([by_epoch, by_time], _nothing(evidence))
        return figure
    seconds, unit = _time_unit(evidence.runs)
    for index, run in enumerate(evidence.slots):
        if isinstance(run, Wanted):
            continue
        top1 = [epoch.top1_percent for epoch in run.record.epochs]
        elapsed_s = list(accumulate(epoch.times.total_s for epoch in run.record.epochs))
        _line(by_epoch, index, [epoch.epoch for epoch in run.record.epochs], top1, run.label)
        _line(by_time, index, [second / seconds for second in elapsed_s], top1, run.label)
    by_epoch.set(title="Top-1 accuracy, %", xlabel="epoch", ylim=(0, None))
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_time.set(xlabel=f"time, {unit}", xlim=(0, None))
    figure.legend(handles=[*by_epoch.get_lines(), *_wanted_handles(evidence)], loc="outside right center")
    return figure


def _nothing(evidence: Evidence) -> str:
    """That there is no run, and how each that is wanted is made."""
    return "\n".join(
        ["No training run has been recorded yet.", *(f"{one.label}: {one.how}" for one in evidence.wanted)]
    )


def _wanted_handles(evidence: Evidence) -> list[Line2D]:
    """A line of the legend for each run that is wanted and not recorded."""
    return [Line2D([], [], ls="", label=f"{label}: no record yet") for label in evidence.missing]


def _time_unit(runs: tuple[Run, ...]) -> tuple[float, str]:
    longest_s = max(run.seconds("total_s") for run in runs)
    return (3600.0, "hours") if longest_s > 3 * 3600 else (60.0, "minutes") if longest_s > 180 else (1.0, "seconds")


def _line(axes: Axes, index: int, x: list[float] | list[int], y: list[float], label: str) -> None:
    look = series(index)
    every = -(-len(x) // _MARKERS)
    axes.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markersize=4,
        markevery=(index % every, every),
        markeredgecolor=PAPER,
        markeredgewidth=0.4,
        label=label,
    )


def time_split(evidence: Evidence) -> Figure:
    """One bar a run: the share of each part of its time."""
    figure, [axes] = new_figure(PAGE_IN, 1.1 + 0.27 * max(len(evidence.runs), 2))
    if not evidence.runs:
        say_empty([axes], _nothing(evidence))
        return figure
    rows = np.arange(len(evidence.runs))
    left = np.zeros(len(evidence.runs))
    for part, label, colour, waiting in TIME_PARTS:
        share = np.array([run.percent(part) for run in evidence.runs])
        hatch = "//////" if waiting else None
        axes.barh(rows, share, left=left, height=0.66, color=colour, edgecolor=PAPER, hatch=hatch, lw=0.5, label=label)
        left += share
    for row, run in enumerate(evidence.runs):
        axes.text(101, row, words.duration(run.seconds("total_s")), va="center", color=TEXT, fontsize=7)
    axes.set_yticks(rows, [run.label for run in evidence.runs], color=INK)
    axes.set(xlim=(0, 100), xlabel="share of the run's time (its length, in minutes, at the right)")
    axes.xaxis.set_major_formatter(PercentFormatter())
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(TIME_PARTS) // 2, handlelength=1.2, columnspacing=1.2)
    return figure


def allreduce(evidence: Evidence) -> Figure:
    """Time and bus bandwidth by message size; bands span the quartiles."""
    if not evidence.comms:
        figure, panels = new_figure(PAGE_IN, 2.6, 2)
        say_empty(panels, f"No collective has been measured yet; looked for {', '.join(_comm_records(evidence))}.")
        return figure
    return collectives([comm.record for comm in evidence.comms])


def _comm_records(evidence: Evidence) -> list[str]:
    """Where measured collectives would be drawn from."""
    own = [evidence.plan.comm_record.as_posix()] if evidence.plan.comm else []
    return [*own, *evidence.plan.report.comm_records]


def collectives(comms: Sequence[CommRecord]) -> Figure:
    """Time and bus bandwidth by message size, one line an arrangement of each record; bands span the quartiles."""
    figure, (time, bandwidth) = new_figure(PAGE_IN, 2.6, 2)
    if not comms:
        say_empty([time, bandwidth], "No collective has been measured yet.")
        return figure
    for index, (label, timings) in enumerate(_curves(comms)):
        sizes = [timing.message_bytes for timing in timings]
        milliseconds = [[1e3 * value for value in values] for values in _quartiles(timings)]
        _line(time, index, sizes, milliseconds[1], label)
        time.fill_between(sizes, milliseconds[0], milliseconds[2], color=series(index).colour, alpha=0.16, lw=0)
        _line(bandwidth, index, sizes, [timing.bus_gbyte_s for timing in timings], label)
    time.set(title="Time, ms", xscale="log", yscale="log")
    log_ticks(time.yaxis)
    bandwidth.set(title="Bus bandwidth, GB/s", xscale="log", ylim=(0, None))
    for axes in (time, bandwidth):
        _size_axis(axes, sorted({line for _, timings in _curves(comms) for line in _sizes(timings)}))
    figure.legend(handles=time.get_lines(), loc="outside right center")
    return figure


def _curves(comms: Sequence[CommRecord]) -> Iterator[tuple[str, list[CollectiveTiming]]]:
    """Label and timings, by rising size, of every record's arrangements."""
    for comm in comms:
        processes = len(comm.placement.hosts)
        by_label: dict[str, list[CollectiveTiming]] = {}
        for timing in sorted(comm.timings, key=lambda timing: timing.message_bytes):
            by_label.setdefault(words.arrangement(timing, comm.timings), []).append(timing)
        for label in sorted(by_label):
            yield f"{label}, {processes} processes", by_label[label]


def _sizes(timings: list[CollectiveTiming]) -> list[int]:
    return [timing.message_bytes for timing in timings]


def _quartiles(timings: list[CollectiveTiming]) -> tuple[list[float], list[float], list[float]]:
    return (
        [timing.lower_quartile_s for timing in timings],
        [timing.median_s for timing in timings],
        [timing.upper_quartile_s for timing in timings],
    )


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    axes.set_xticks(sizes[:: -(-len(sizes) // 7)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.size(value)))
    axes.set_xlabel("message size")
