"""Runs that repeat one recipe with other seeds: their mean, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from fourminutes.report import words
from fourminutes.report.evidence import Run, recipe


@dataclass(frozen=True)
class Mean:
    """A mean over `n` values; `half_width` is that of its 95 % t-interval, None of a single value."""

    n: int
    value: float
    half_width: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean m of n values and t s / √n, with their sample deviation s and t = t_{0.975, n-1} (Student 1908).

    Raises:
        statistics.StatisticsError: there is no value.
    """
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Mean(count, mean, None)
    quantile = float(student.ppf(0.975, count - 1))
    return Mean(count, mean, quantile * statistics.stdev(values) / math.sqrt(count))


def repeats_of(run: Run, runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs of `run`'s recipe on hardware of its kind, one a seed: two of one seed are no two samples."""
    alike = [one for one in runs if _kind(one) == _kind(run)]
    by_seed = {one.record.settings.seed: one for one in reversed(alike)}
    return tuple(one for one in alike if by_seed[one.record.settings.seed] is one)


def top1_mean(run: Run, runs: Sequence[Run]) -> Mean:
    """Of the final top-1 accuracy over the repeats of `run`, in percent."""
    return mean_of([one.record.final.top1_percent for one in repeats_of(run, runs)])


def rate_mean(run: Run, runs: Sequence[Run]) -> Mean:
    """Of the rate over the repeats of `run`, in images/s."""
    return mean_of([one.images_per_s for one in repeats_of(run, runs)])


def _kind(run: Run) -> tuple[object, ...]:
    return recipe(run.record), words.hardware_brief(run.record.placement, run.record.provenance)
