"""Recorded sweeps as the report shows them: arms of experiments, with what each trial got right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from re import sub
from statistics import fmean

import numpy as np

from fourminutes.errors import UserError
from fourminutes.plan import Plan
from fourminutes.record import Hits, SweepRecord, Trial, digits_of, read_record, sweep_as_asked, unpacked_hits
from fourminutes.report.bootstrap import Estimate, Values, estimate


@dataclass(frozen=True)
class Arm:
    """A recorded sweep."""

    name: str
    path: Path
    record: SweepRecord
    outdated: bool

    @property
    def family(self) -> str:
        """What it has in common with the sweeps beside it: its name without the number at the end."""
        return family(self.name)

    @property
    def tuning_trials(self) -> tuple[Trial, ...]:
        """The trials that chose the value: the budget spent."""
        return tuple(trial for trial in self.record.trials if trial.purpose == "tune")

    @cached_property
    def final_trials(self) -> tuple[Trial, ...]:
        """The fresh trials with the chosen value, by rising seed."""
        finals = (trial for trial in self.record.trials if trial.purpose == "final")
        return tuple(sorted(finals, key=lambda trial: trial.seed))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the final trials."""
        return tuple(trial.seed for trial in self.final_trials)

    @property
    def pictures(self) -> tuple[str, int, int]:
        """Identifies the pictures that are reported on: equal in two arms that can be compared picture by picture."""
        return self.record.dataset_hash, self.record.val_images, self.record.tuning.tune_images

    @cached_property
    def accuracy(self) -> Estimate | None:
        """Top-1 in percent on the pictures that chose nothing, over the final trials; None without any."""
        return estimate(self.scores(self.seeds)) if self.final_trials else None

    @property
    def flushed_percent(self) -> float | None:
        """Share of updates that fp16 rounded to nothing, mean over the final trials; None where none says."""
        shares = [trial.flushed_percent for trial in self.final_trials if trial.flushed_percent is not None]
        return fmean(shares) if shares else None

    def scores(self, seeds: tuple[int, ...]) -> Values:
        """1 where a final trial was right and 0 elsewhere: int8 of shape (seeds, reported pictures), in that order."""
        by_seed = {trial.seed: trial for trial in self.final_trials}
        tuned_on = self.record.tuning.tune_images
        return np.stack([self.hits(by_seed[seed])[tuned_on:] for seed in seeds]).astype(np.int8)

    def tune_percent(self, trial: Trial) -> float:
        """Top-1 on the pictures that choose the value."""
        return 100 * float(self.hits(trial)[: self.record.tuning.tune_images].mean())

    def report_percent(self, trial: Trial) -> float:
        """Top-1 on the other pictures."""
        return 100 * float(self.hits(trial)[self.record.tuning.tune_images :].mean())

    def hits(self, trial: Trial) -> Hits:
        """For every validation image, in the shards' order, whether its class came first; shape (images,).

        Raises:
            UserError: the record has not one bit an image.
        """
        images = self.record.val_images
        if len(trial.hits) != digits_of(images):
            raise UserError(
                f"{self.path}: trial {trial.value:g} of seed {trial.seed} has {len(trial.hits)} digits of hits, "
                f"which are not those of {images} images; remove the file and make the sweep again"
            )
        return unpacked_hits(trial.hits)[:images]


def family(name: str) -> str:
    """``lars-800`` and ``lars-3200`` are both of ``lars``; a name without a number at its end is its own family."""
    return sub(r"-\d+$", "", name)


def read_arms(plan: Plan) -> tuple[Arm, ...]:
    """Every sweep of `plan` that has a record, in the plan's order.

    Raises:
        UserError: a record is damaged or of another kind.
    """
    paths = {name: plan.sweep_record(name) for name in plan.sweeps}
    return tuple(_arm(plan, name, path) for name, path in paths.items() if path.is_file())


def _arm(plan: Plan, name: str, path: Path) -> Arm:
    record = read_record(path, SweepRecord)
    return Arm(name, path, record, outdated=not sweep_as_asked(plan, name, record))
