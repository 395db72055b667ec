"""The learning rate over the epochs."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from fourminutes.plan import SchedulePlan


def rate_at(schedule: SchedulePlan, epoch: float, epochs: int) -> float:
    """The learning rate γ after `epoch` of `epochs` epochs, a pure function of the two.

    With e the epoch, W the warm-up's length, E the number of epochs and t = (e − W) / (E − W), at most 1::

        e < W         γ = warmup + (base − warmup)·e/W
        polynomial    γ = end + (base − end)·(1 − t)^power
        cosine        γ = end + (base − end)·(1 + cos πt)/2
        multistep     γ = base·factor^k, with k the number of milestones m ≤ e      (end_rate plays no part)
        constant      γ = base                                                      (likewise)

    Args:
        schedule: the rates, the length of the warm-up in epochs and the form of the decay; `RunPlan.rates`, in which
            the linear scaling rule is applied already.
        epoch: passes over the training set made so far, with its fraction.
        epochs: passes over the training set that the run makes in all.

    Raises:
        ValueError: the linear scaling rule is still to be applied.
    """
    if schedule.base_batch is not None:
        raise ValueError(f"base_rate is for a batch of {schedule.base_batch}; take the run's `rates`")
    if epoch < schedule.warmup_epochs:
        rise = schedule.base_rate - schedule.warmup_rate
        return schedule.warmup_rate + rise * epoch / schedule.warmup_epochs
    progress = min((epoch - schedule.warmup_epochs) / (epochs - schedule.warmup_epochs), 1.0)
    fall = schedule.base_rate - schedule.end_rate
    match schedule.decay:
        case "polynomial":
            return schedule.end_rate + fall * float((1 - progress) ** schedule.power)
        case "cosine":
            return schedule.end_rate + fall * (1 + math.cos(math.pi * progress)) / 2
        case "multistep":
            passed = sum(milestone <= epoch for milestone in schedule.milestones)
            return schedule.base_rate * float(schedule.milestone_factor**passed)
        case "constant":
            return schedule.base_rate


def step_rate(schedule: SchedulePlan, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of one step: that of `rate_at` at the step's middle, e = (step − 1/2) / steps_per_epoch.

    A step stands for a stretch of the curve, and the middle stands best for it: the rates of a warm-up, or of any
    straight stretch, add up to just the area below the curve, however few steps there are in an epoch (at 64K they are
    19). At a step's start the first step of a warm-up from 0 would be lost, at its end the last step of a decay to 0;
    here neither is. A step that was skipped doesn't count.

    Args:
        schedule: as in `rate_at`.
        step: number of the step, 1 to epochs x steps_per_epoch.
        steps_per_epoch: optimizer steps in one pass over the training set.
        epochs: as in `rate_at`.
    """
    return rate_at(schedule, (step - 0.5) / steps_per_epoch, epochs)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `rate`, for the next step.

    A rate that is a tensor is changed where it is: a captured step reads it there.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
