"""The two-way bootstrap over seeds and pictures, against cases that are known."""

from __future__ import annotations

import numpy as np
import pytest

from fourminutes.report.bootstrap import Estimate, Interval, estimate, resampled_means


def trials_of_two_arms(rng: np.random.Generator, seeds: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures two arms get right, the first a little more often: some are easy for both, some for neither."""
    ease = rng.normal(1, 2, pictures)
    of_seed = rng.normal(0, 0.1, (2, seeds, 1))
    chance = rng.logistic(0, 1, (2, seeds, pictures))
    arm, against = (ease + np.array([0.3, 0])[:, None, None] + of_seed + chance > 0).astype(np.int8)
    return arm, against


def two_way_variance(values: np.ndarray) -> float:
    """The variance that infinitely many resamples have, from the moments of the two multinomial distributions."""
    seeds, pictures = values.shape
    covariance = np.cov(values, bias=True).reshape(seeds, seeds)
    within = (1 - 1 / seeds) * covariance.mean() + np.diag(covariance).mean() / seeds
    return float(values.mean(axis=1).var() / seeds + within / pictures)


@pytest.mark.parametrize(("seeds", "pictures"), [(1, 400), (3, 50), (10, 1000)])
def test_the_spread_of_resampled_means_is_the_one_that_theory_gives(seeds, pictures):
    arm, against = trials_of_two_arms(np.random.default_rng(seeds), seeds, pictures)
    for values in (arm, arm - against):
        assert estimate(values).standard_error == pytest.approx(100 * two_way_variance(values) ** 0.5, rel=0.03)


def test_one_seed_leaves_the_error_of_a_share_of_the_pictures():
    values = (np.arange(500) < 400).astype(np.int8)[None]
    found = estimate(values)
    assert found.mean == 80
    assert found.standard_error == pytest.approx(100 * (0.8 * 0.2 / 500) ** 0.5, rel=0.03)
    assert found.interval_95.low == pytest.approx(80 - 1.96 * found.standard_error, abs=0.2)
    assert found.interval_90.high == pytest.approx(80 + 1.645 * found.standard_error, abs=0.2)


def test_pictures_that_all_do_the_same_leave_the_error_of_the_seeds():
    values = np.repeat(np.array([[1], [0]] * 8, np.int8), 30, axis=1)
    assert estimate(values).standard_error == pytest.approx(100 * 0.5 / 16**0.5, rel=0.03)


def test_resampled_means_average_to_the_mean_and_are_the_same_each_time():
    arm, against = trials_of_two_arms(np.random.default_rng(3), 5, 200)
    means = resampled_means(arm - against)
    assert means.shape == (10_000,)
    assert means.mean() == pytest.approx((arm - against).mean(), abs=4 * means.std() / 100)
    assert np.array_equal(means, resampled_means(arm - against))


def test_pictures_and_seeds_may_come_in_any_order():
    arm, against = trials_of_two_arms(np.random.default_rng(4), 6, 300)
    shuffled = np.random.default_rng(5).permutation((arm - against).T).T
    assert estimate(shuffled) == estimate(arm - against)


def test_the_95_percent_interval_holds_the_truth_about_that_often():
    rng = np.random.default_rng(6)
    # The truth, from far more seeds and pictures.
    truth = float(np.mean([np.subtract(*trials_of_two_arms(rng, 50, 20_000)).mean() for _ in range(5)]))
    held = 0
    for _ in range(200):
        means = resampled_means(np.subtract(*trials_of_two_arms(rng, 10, 400)), resamples=500)
        low, high = np.percentile(means, [2.5, 97.5])
        held += low <= truth <= high
    assert 0.92 <= held / 200 <= 1


def test_equal_arms_differ_by_nothing():
    arm, _ = trials_of_two_arms(np.random.default_rng(7), 4, 100)
    assert estimate(arm - arm) == Estimate(0, 0, Interval(0, 0), Interval(0, 0))


def test_pairing_makes_the_difference_surer():
    arm, against = trials_of_two_arms(np.random.default_rng(8), 10, 500)
    unpaired = (estimate(arm).standard_error ** 2 + estimate(against).standard_error ** 2) ** 0.5
    assert estimate(arm - against).standard_error < 0.7 * unpaired


def test_the_smallest_detectable_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(9)
    standard_error, margin = 0.5, 1.0
    found = Estimate(0, standard_error, Interval(0, 0), Interval(0, 0))
    measured = rng.normal(margin + found.detectable, standard_error, 20_000)
    assert (measured - 1.96 * standard_error > margin).mean() == pytest.approx(0.8, abs=0.01)


def test_equal_things_are_shown_to_be_equal_within_the_least_margin_four_times_in_five():
    rng = np.random.default_rng(10)
    standard_error = 0.5
    margin = Estimate(0, standard_error, Interval(0, 0), Interval(0, 0)).least_margin
    measured = rng.normal(0, standard_error, 20_000)
    assert (np.abs(measured) + 1.645 * standard_error < margin).mean() == pytest.approx(0.8, abs=0.01)
