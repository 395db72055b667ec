"""The ledger of a sweep: every trial that was made, and what it was made for."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from fourminutes.plan import RunPlan, TuningPlan
from fourminutes.record.base import Record
from fourminutes.record.provenance import Provenance
from fourminutes.record.run import Placement


class Trial(Record):
    """One training with one value and one seed; its accuracy is that after the last epoch, whatever was before."""

    purpose: Literal["tune", "final"] = Field(description="tune: chooses the value; final: is reported on")
    value: float = Field(description="of the sweep's key")
    seed: int
    settings_hash: str = Field(description="of all settings that decide the weights")
    diverged: bool = Field(description="ended before its time, since loss or gradients were no finite numbers")
    hits: str = Field(
        pattern="^[0-9a-f]*$",
        description="for every validation image, in the shards' order, whether its class came first: bits, the most "
        "significant first, in hexadecimal digits; all 0 where the trial diverged",
    )
    train_loss: float | None = Field(description="mean of the last epoch; null where the trial diverged")
    skipped_steps: int
    flushed_percent: float | None = Field(description="mean over the epochs; null where fp16 stores no weights")
    wall_s: float


class SweepRecord(Record):
    """A sweep as far as it has come."""

    kind: Literal["sweep"] = "sweep"
    plan: str
    sweep: str
    settings: RunPlan = Field(description="every resolved value; of the key and the seed, each trial has its own")
    key: str
    tuning: TuningPlan
    dataset: str
    dataset_hash: str
    class_count: int
    train_images: int
    val_images: int
    steps_per_epoch: int
    trials: tuple[Trial, ...]
    chosen: float | None = Field(description="the value of the final trials; null while tuning goes on")
    chosen_from: str | None = Field(description="sweep that the value was taken from; null where it was tuned here")
    at_edge: bool = Field(description="whether the chosen value ends the grid: a better one may lie beyond")
    placement: Placement
    provenance: Provenance

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if self.tuning.tune_images >= self.val_images:
            raise ValueError(
                f"{self.tuning.tune_images} of {self.val_images} images choose, and none is left to report on"
            )
        made_for = Counter((trial.purpose, trial.value, trial.seed) for trial in self.trials)
        if made_for and (most := made_for.most_common(1)[0])[1] > 1:
            raise ValueError(f"trial {most[0]} is there {most[1]} times")
        return self
