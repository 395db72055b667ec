"""The learning rate over the epochs."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from fourminutes.plan import SchedulePlan


def rate_at(schedule: SchedulePlan, epoch: float, epochs: int) -> float:
    """The learning rate γ after `epoch` of `epochs` epochs, a pure function of the two.

    With e the epoch, W the warm-up's length, E the number of epochs and t = (e − W) / (E − W), at most 1::

        e < W         γ = warmup + (base − warmup)·e/W
        polynomial    γ = end + (base − end)·(1 − t)^power
        cosine        γ = end + (base − end)·(1 + cos πt)/2
        constant      γ = base                                (end_rate plays no part)

    Args:
        schedule: the rates, the length of the warm-up in epochs and the form of the decay.
        epoch: passes over the training set made so far, with its fraction.
        epochs: passes over the training set that the run makes in all.
    """
    if epoch < schedule.warmup_epochs:
        rise = schedule.base_rate - schedule.warmup_rate
        return schedule.warmup_rate + rise * epoch / schedule.warmup_epochs
    progress = min((epoch - schedule.warmup_epochs) / (epochs - schedule.warmup_epochs), 1.0)
    if schedule.decay == "constant":
        return schedule.base_rate
    fall = schedule.base_rate - schedule.end_rate
    if schedule.decay == "cosine":
        return schedule.end_rate + fall * (1 + math.cos(math.pi * progress)) / 2
    return schedule.end_rate + fall * float((1 - progress) ** schedule.power)


def step_rate(schedule: SchedulePlan, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of one step: that of `rate_at` at the step's end, e = step / steps_per_epoch.

    So the first step of a warm-up from 0 moves the weights already, the warm-up's last step has the base rate, and the
    run's last step has the end rate, each exactly. A step that was skipped doesn't count.

    Args:
        schedule: as in `rate_at`.
        step: number of the step, 1 to epochs x steps_per_epoch.
        steps_per_epoch: optimizer steps in one pass over the training set.
        epochs: as in `rate_at`.
    """
    return rate_at(schedule, step / steps_per_epoch, epochs)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `rate`, for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
