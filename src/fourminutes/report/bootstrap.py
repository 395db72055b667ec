"""How sure a mean over seeds and pictures is: a bootstrap of both at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
#: Of the resampling itself, so that equal records give equal intervals; its value means nothing.
SEED = 1807_11205
#: Normal quantiles of a two-sided test at 5 % and of a power of 80 %; and those of two one-sided tests at 5 %, of which
#: both have to succeed, each in 90 % of the cases for 80 % of both.
_TEST_Z, _POWER_Z = 1.96, 0.84
_EQUAL_TEST_Z, _EQUAL_POWER_Z = 1.645, 1.28

Values = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Everything from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and pictures, with what resampling says of it, in percent or points."""

    mean: float
    standard_error: float
    interval_90: Interval
    interval_95: Interval

    @property
    def detectable(self) -> float:
        """How far from a margin the truth must be for the 95 % interval to exclude the margin with 80 % power.

        (z_0.975 + z_0.8) s with the standard error s, as for a normally distributed mean.
        """
        return (_TEST_Z + _POWER_Z) * self.standard_error

    @property
    def least_margin(self) -> float:
        """How wide a margin must be for the 90 % interval to lie within it with 80 % power, where the truth is 0.

        (z_0.95 + z_0.9) s: no smaller margin can be expected to show two equal things to be equal.
        """
        return (_EQUAL_TEST_Z + _EQUAL_POWER_Z) * self.standard_error


def estimate(values: Values) -> Estimate:
    """100 times the mean of `values`, of shape (seeds, pictures), each -1, 0 or 1, and its percentile intervals.

    That is an accuracy in percent where `values` says which pictures were right. Of two arms, it is the difference in
    points where `values` is that of the two, seed by seed and picture by picture: both are then resampled alike.
    """
    means = 100 * resampled_means(values)
    return Estimate(
        mean=100 * float(values.mean(dtype=np.float64)),
        standard_error=float(means.std()),
        interval_90=_interval(means, 90),
        interval_95=_interval(means, 95),
    )


def resampled_means(values: Values, resamples: int = RESAMPLES, seed: int = SEED) -> Numbers:
    """Means of resamples of seeds and, independently of them, of pictures, each drawn with replacement.

        mean_b = 1/(S P) sum over s, p of m_bs n_bp values_sp

    with m_b and n_b the numbers of times that each of the S seeds and P pictures was drawn: the pigeonhole bootstrap of
    A. B. Owen, Annals of Applied Statistics 1 (2007) 386. It is cautious about what seed and picture make together,
    and, as every bootstrap, a little too sure where few seeds decide: by (S - 1)/S in their part of the variance.

    Once the seeds are drawn, a picture adds a whole number from -S to S to the sum; so only the number of pictures
    drawn of each matters, and these numbers are multinomial.

    Args:
        values: shape (seeds, pictures), int8, each -1, 0 or 1.
        resamples: B, the length of the result.
        seed: of the draws.

    Returns:
        Shape (resamples,), float64.
    """
    rng = np.random.default_rng(seed)
    seeds, pictures = values.shape
    # Pictures that did equally well under every seed are told together.
    patterns, counts = np.unique(values, axis=1, return_counts=True)
    drawn_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    shares = [_shares(drawn @ patterns, counts, seeds) for drawn in drawn_seeds]
    drawn_pictures = rng.multinomial(pictures, np.stack(shares))
    means: Numbers = drawn_pictures @ np.arange(-seeds, seeds + 1) / (seeds * pictures)
    return means


def _shares(sums: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], seeds: int) -> Numbers:
    """Share of the pictures whose sum is -seeds, ..., seeds; shape (2 seeds + 1,)."""
    pictures = np.bincount(sums + seeds, weights=counts, minlength=2 * seeds + 1)
    shares: Numbers = pictures / counts.sum()
    return shares


def _interval(means: Numbers, percent: float) -> Interval:
    outside = (100 - percent) / 2
    low, high = np.percentile(means, [outside, 100 - outside])
    return Interval(float(low), float(high))
