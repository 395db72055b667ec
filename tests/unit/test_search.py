"""What a sweep tries next, and what it chooses: rules fixed beforehand, the same budget for every sweep."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fourminutes.errors import UserError
from fourminutes.plan import RunPlan, TuningPlan
from fourminutes.record import Trial, packed_hits
from fourminutes.train.search import Want, chosen_value, is_at_edge, next_final, next_tuning, tune_percent
from fourminutes.train.sweep import with_value

TUNING = TuningPlan(points=6, budget=9, tune_images=10, seed=1000, final_seeds=3)


def trial(purpose: str, value: float, seed: int, correct: int) -> Trial:
    """A trial that is right on the first `correct` of the ten tuning pictures, and on all eight others."""
    hits = [picture < correct for picture in range(10)] + [True] * 8
    return Trial(
        purpose=purpose,
        value=value,
        seed=seed,
        settings_hash="",
        diverged=False,
        hits=packed_hits(hits),
        train_loss=1.0,
        skipped_steps=0,
        flushed_percent=None,
        wall_s=1.0,
    )


def tuned(correct: Callable[[float, int], int], tuning: TuningPlan = TUNING, start: float = 1.0) -> list[Trial]:
    """All tuning trials of a sweep whose accuracy is known by value and seed."""
    trials: list[Trial] = []
    while (want := next_tuning(tuning, start, trials)) is not None:
        assert want.purpose == "tune"
        trials.append(trial("tune", want.value, want.seed, correct(want.value, want.seed)))
    return trials


def test_the_grid_comes_first_and_the_budget_is_always_spent():
    trials = tuned(lambda value, seed: 5)
    assert [each.value for each in trials[:6]] == [1, 2, 4, 8, 16, 32]
    assert {each.seed for each in trials[:6]} == {1000}
    assert len(trials) == 9


def test_a_best_value_inside_is_repeated_with_its_neighbours_and_further_seeds():
    trials = tuned(lambda value, seed: 9 if value == 8 else 3)
    assert [(each.value, each.seed) for each in trials[6:]] == [(8, 1001), (4, 1001), (16, 1001)]


@pytest.mark.parametrize(
    ("slope", "beyond"), [(1, [64, 128, 256]), (-1, [0.5, 0.25, 0.125])], ids=["highest", "lowest"]
)
def test_while_the_best_value_is_at_an_edge_the_grid_grows_beyond_it(slope, beyond):
    trials = tuned(lambda value, seed: round((0 if slope > 0 else 5) + slope * math.log2(value)))
    assert [each.value for each in trials[6:]] == beyond
    assert chosen_value(TUNING, trials) == beyond[-1]
    assert is_at_edge(trials, beyond[-1])


def test_the_grid_stops_growing_once_the_best_value_is_inside():
    accuracy = {1: 8, 2: 7, 4: 6, 8: 5, 16: 4, 32: 3, 0.5: 9, 0.25: 2}
    trials = tuned(lambda value, seed: accuracy[value])
    assert [(each.value, each.seed) for each in trials[6:]] == [(0.5, 1000), (0.25, 1000), (0.5, 1001)]
    assert chosen_value(TUNING, trials) == 0.5
    assert not is_at_edge(trials, 0.5)


def test_several_seeds_of_a_value_count_by_their_mean():
    """4 looks best with one lucky seed; its second is worse than 8's two."""
    lucky = {(4.0, 1000): 9, (4.0, 1001): 1, (8.0, 1000): 8, (8.0, 1001): 8}
    trials = tuned(lambda value, seed: lucky.get((value, seed), 2))
    assert chosen_value(TUNING, trials) == 8


def test_of_equal_values_the_lowest_is_chosen():
    assert chosen_value(TUNING, [trial("tune", value, 1000, 5) for value in (4, 2, 8)]) == 2


def test_final_trials_are_fresh_seeds_with_the_chosen_value():
    made = [trial("final", 8, 1, 5), trial("final", 4, 0, 5), trial("tune", 8, 1000, 5)]
    assert next_final(TUNING, 8, made) == Want("final", 8, 0)
    made += [trial("final", 8, 0, 5), trial("final", 8, 2, 5)]
    assert next_final(TUNING, 8, made) is None


def test_reported_pictures_have_no_say_in_the_choice():
    assert tune_percent(TUNING, trial("tune", 1, 0, 0)) == 0
    assert tune_percent(TUNING, trial("tune", 1, 0, 7)) == 70


@pytest.mark.parametrize(
    ("hits", "digits"), [([True], "8"), ([False] * 5, "00"), ([False, False, False, True, True], "18")]
)
def test_hits_are_packed_from_the_highest_bit_on(hits, digits):
    assert packed_hits(hits) == digits


def test_a_key_at_any_depth_takes_the_value():
    run = RunPlan()
    assert with_value(run, "schedule.base_rate", 3.0, 7).schedule.base_rate == 3
    assert with_value(run, "label_smoothing", 0.1, 7).label_smoothing == 0.1
    changed = with_value(run, "epochs", 5.0, 7)
    assert (changed.epochs, changed.seed) == (5, 7)


@pytest.mark.parametrize("key", ["schedule.rate", "optimiser.momentum", "model", "epochs.all"])
def test_a_key_that_a_run_lacks_is_named(key):
    with pytest.raises(UserError, match=f"key '{key}' is no place"):
        with_value(RunPlan(), key, 1.0, 0)


def test_a_value_that_cannot_be_is_named():
    with pytest.raises(UserError, match=r"optimizer\.momentum cannot be 2: .*less than 1"):
        with_value(RunPlan(), "optimizer.momentum", 2.0, 0)
