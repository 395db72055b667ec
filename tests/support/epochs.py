"""Epochs as records have them, for tests of what is made of records."""

from __future__ import annotations

from typing import Any

from fourminutes.record import Epoch, StepTimes

PARTS = ("input_wait", "forward", "backward", "exposed_reduce", "optimizer", "evaluation", "checkpoint", "other")


def step_times(**seconds: float) -> StepTimes:
    """The named parts (`forward_s`, ...) of an epoch's time, the others 0; together the total, if none is given."""
    parts = {f"{part}_s": 0.0 for part in PARTS} | seconds
    return StepTimes.model_validate({"total_s": sum(parts.values())} | parts)


def epoch_record(number: int, *, steps_per_epoch: int = 10, **changes: Any) -> Epoch:
    """Epoch `number`, from 1, of a run; `changes` are laid over values that are as good as any."""
    values = {
        "epoch": number,
        "steps": steps_per_epoch * number,
        "train_loss": 2.5,
        "train_images": 1000,
        "dropped_images": 0,
        "rate": 0.5,
        "val_loss": 3.0 - number / 10,
        "top1_percent": 10.0 * number,
        "top5_percent": 20.0 * number,
        "val_images": 100,
        "images_per_s": 123.4,
        "times": step_times(forward_s=3.0, backward_s=5.0),
    }
    return Epoch.model_validate(values | changes)
