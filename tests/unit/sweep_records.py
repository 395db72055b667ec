"""Hand-made records of sweeps, and the plan's blocks that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourminutes.plan import BatchPlan, ModelPlan, OptimizerPlan, Plan, RunPlan, TuningPlan
from fourminutes.record import Placement, Provenance, SweepRecord, Trial, write_record

Hits = npt.NDArray[np.bool_]

TUNING = TuningPlan(points=3, budget=4, tune_images=50, final_seeds=4)
#: The first 50 choose; not a whole number of hexadecimal digits.
IMAGES = 250 + 1

PROVENANCE = Provenance(
    written="2026-11-20T10:00:00+00:00",
    command="fourminutes train --plan config/plans/demo.yaml",
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
    versions={"python": "3.11.7", "torch": "2.13.0"},
    host="node1",
    cpu="Some CPU <2.4 GHz>",
    cpu_cores=2,
    memory_gib=24.0,
)


def sweep_settings(batch: int = 64, kind: str = "sgd", precision: str = "fp32") -> RunPlan:
    return RunPlan(
        epochs=4,
        precision=precision,
        model=ModelPlan(name="resnet_small", image_px=32),
        optimizer=OptimizerPlan(kind=kind),
        batch=BatchPlan(global_batch=batch, per_device=32),
    )


def hits_of(tuned_on: int, reported: int) -> Hits:
    """Right on that many pictures of those that choose, and on that many of the others; the first ones of each."""
    place = np.arange(IMAGES)
    return (place < tuned_on) | ((place >= TUNING.tune_images) & (place < TUNING.tune_images + reported))


def trial(purpose: str, value: float, seed: int, hits: Hits, **fields: Any) -> Trial:
    settled = {"settings_hash": "ab", "diverged": False, "train_loss": 0.5, "skipped_steps": 0, "wall_s": 30.0}
    digits = np.packbits(hits).tobytes().hex()[: -(-len(hits) // 4)]
    made = {"purpose": purpose, "value": value, "seed": seed, "hits": digits, "flushed_percent": None}
    return Trial.model_validate(settled | made | fields)


def diverged_trial(purpose: str, value: float, seed: int) -> Trial:
    return trial(purpose, value, seed, np.zeros(IMAGES, np.bool_), diverged=True, train_loss=None)


def tuning_trials(chosen: float = 0.2) -> tuple[Trial, ...]:
    """Three values, of which the highest diverges, and a second seed of the best."""
    return (
        trial("tune", chosen / 2, 1000, hits_of(20, 0)),
        trial("tune", chosen, 1000, hits_of(40, 0)),
        diverged_trial("tune", chosen * 2, 1000),
        trial("tune", chosen, 1001, hits_of(30, 0)),
    )


def sweep_record(name: str, finals: Sequence[Hits | Trial], settings: RunPlan, **fields: Any) -> SweepRecord:
    """A sweep whose final trials, of seeds 0, 1, ..., are those given, or were right where they are given so."""
    made = {
        "plan": "made",
        "sweep": name,
        "settings": settings,
        "key": "schedule.base_rate",
        "tuning": TUNING,
        "dataset": "made",
        "dataset_hash": "ab" * 32,
        "class_count": 10,
        "train_images": 1600,
        "val_images": IMAGES,
        "steps_per_epoch": 1600 // settings.batch.global_batch,
        "trials": (
            *tuning_trials(),
            *(one if isinstance(one, Trial) else trial("final", 0.2, seed, one) for seed, one in enumerate(finals)),
        ),
        "chosen": 0.2,
        "chosen_from": None,
        "at_edge": False,
        "placement": Placement(launcher="alone", hosts=("node1",), device="cpu", backend=None, arithmetic="fp32"),
        "provenance": PROVENANCE,
    }
    return SweepRecord(**(made | fields))


#: Arms by name: their settings, and how many of the 201 reported pictures their seeds get right.
ARMS: dict[str, tuple[RunPlan, tuple[int, ...]]] = {
    "sgd-64": (sweep_settings(64), (150, 152, 148, 154)),
    "sgd-512": (sweep_settings(512), (100, 104, 98, 102)),
    "lars-512": (sweep_settings(512, "lars"), (149, 150, 147, 155)),
    "lars-half-512": (sweep_settings(512, "lars", "half"), (148, 150, 148, 153)),
}
CLAIMS: dict[str, Any] = {
    "lars-holds": {
        "statement": "LARS holds the accuracy where momentum SGD loses it.",
        "kind": "gains",
        "margin_points": 1,
        "comparisons": [
            {"arm": "lars-512", "against": "sgd-512", "only_if": {"sweep": "sgd-512", "lost_to": "sgd-64"}}
        ],
    },
    "half-equals": {
        "statement": "Half precision is as accurate as single precision.",
        "kind": "equals",
        "margin_points": 2,
        "comparisons": [{"arm": "lars-half-512", "against": "lars-512"}],
    },
}


def arm_record(name: str, **fields: Any) -> SweepRecord:
    """The record of an arm of `ARMS`."""
    settings, correct = ARMS[name]
    return sweep_record(name, [hits_of(40, count) for count in correct], settings, **fields)


def plan_blocks(claims: dict[str, Any] | None = None) -> dict[str, Any]:
    """The blocks of a plan that ask for the arms, and for claims."""
    sweeps = {name: {"run": run.model_dump(mode="json"), "start": 0.1} for name, (run, _) in ARMS.items()}
    return {"tuning": TUNING.model_dump(mode="json"), "sweeps": sweeps, "claims": CLAIMS if claims is None else claims}


def record_arms(plan: Plan, *names: str, **fields: Any) -> None:
    """Write the records of those arms, or of all."""
    for name in names or tuple(ARMS):
        write_record(plan.sweep_record(name), arm_record(name, **fields))
