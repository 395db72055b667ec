"""Paired ratios of times that were taken in turns, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of one time over another, and the interval of resampled rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(own_s: Sequence[float], other_s: Sequence[float]) -> Ratio:
    """Round by round, so that what disturbs a round disturbs both."""
    rounds = np.array(own_s) / np.array(other_s)
    random = np.random.default_rng(0)
    medians = np.median(random.choice(rounds, (_RESAMPLES, len(rounds))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Ratio(float(np.median(rounds)), float(low), float(high))


def geometric_mean(values: Sequence[float]) -> float:
    """Of numbers above zero."""
    return math.exp(sum(map(math.log, values)) / len(values))


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return low, median, high
