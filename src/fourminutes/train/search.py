"""What a sweep tries next: the same budget for every sweep, spent by rules fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fourminutes.plan import TuningPlan
from fourminutes.record import Trial, unpacked_hits


@dataclass(frozen=True)
class Want:
    """A trial that is to be made."""

    purpose: Literal["tune", "final"]
    value: float
    seed: int


def next_tuning(
    tuning: TuningPlan, start: float, trials: Sequence[Trial], possible: Callable[[float], bool] = lambda value: True
) -> Want | None:
    """The tuning trial that comes after `trials`; None when the budget is spent.

    First the grid, start x factor^i for i = 0 ... points - 1, each value with the first seed. Then, while the best
    value is the lowest or the highest one, the next value beyond it, as long as it is `possible`. Then the best value
    and its neighbours, again and again with further seeds, whichever had the fewest: neighbours lie close together, and
    one seed decides little.
    """
    tried = [trial for trial in trials if trial.purpose == "tune"]
    if len(tried) >= tuning.budget:
        return None
    if len(tried) < tuning.points:
        return Want("tune", start * tuning.factor ** len(tried), tuning.seed)
    values, best = _values(tried), chosen_value(tuning, tried)
    for edge, beyond in ((values[0], best / tuning.factor), (values[-1], best * tuning.factor)):
        if best == edge and possible(beyond):
            return Want("tune", beyond, tuning.seed)
    place = values.index(best)
    neighbours = values[max(0, place - 1) : place + 2]
    seeds = {value: sum(trial.value == value for trial in tried) for value in neighbours}
    fewest = min(seeds, key=lambda value: (seeds[value], value != best))
    return Want("tune", fewest, tuning.seed + seeds[fewest])


def next_final(tuning: TuningPlan, value: float, trials: Sequence[Trial]) -> Want | None:
    """The next of the fresh trials with the chosen value; None when all are made."""
    made = {trial.seed for trial in trials if trial.purpose == "final" and trial.value == value}
    missing = (seed for seed in range(tuning.final_seeds) if seed not in made)
    return next((Want("final", value, seed) for seed in missing), None)


def chosen_value(tuning: TuningPlan, trials: Sequence[Trial]) -> float:
    """The value with the highest mean accuracy on the tuning pictures; the lowest one of several."""
    tried = [trial for trial in trials if trial.purpose == "tune"]
    means = {
        value: fmean(tune_percent(tuning, trial) for trial in tried if trial.value == value) for value in _values(tried)
    }
    return max(means, key=lambda value: (means[value], -value))


def is_at_edge(trials: Sequence[Trial], value: float) -> bool:
    """Whether `value` is the lowest or the highest one that was tuned with."""
    values = _values([trial for trial in trials if trial.purpose == "tune"])
    return bool(values) and value in (values[0], values[-1])


def tune_percent(tuning: TuningPlan, trial: Trial) -> float:
    """Top-1 accuracy on the pictures that choose, in percent."""
    return 100 * float(unpacked_hits(trial.hits)[: tuning.tune_images].mean())


def _values(trials: Sequence[Trial]) -> list[float]:
    return sorted({trial.value for trial in trials})
