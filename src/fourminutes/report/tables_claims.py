"""Tables of the experiments: what they say of the claims, their arms, and every trial."""

from __future__ import annotations

from collections.abc import Iterator

from fourminutes.plan import ClaimPlan, SweepPlan
from fourminutes.record import Trial
from fourminutes.report import words
from fourminutes.report.arms import Arm
from fourminutes.report.claims import Comparison, Judgement
from fourminutes.report.evidence import Evidence
from fourminutes.report.table import Cell, Column, Row, Table, digits

_INTERVALS = "Intervals are percentiles of 10,000 resamples of the seeds and, independently, of the pictures"
_CLAIM_NOTES = (
    (
        "Accuracies are top-1 on the pictures that chose no value, differences in points, by equal seeds and pictures; "
        f"n: seeds. {_INTERVALS}. A diverged trial counts as 0 %."
    ),
    (
        "gains is supported where the 95 % interval lies above the margin and refuted where none of it does; equals is "
        "supported where the 90 % interval lies within ± the margin (two one-sided tests at 5 %) and refuted where the "
        "95 % interval lies wholly outside. detectable, with 80 % power: for gains how far from the margin the truth "
        "must be (2.8 standard errors), for equals how wide the margin must be where there is no difference (2.9)."
    ),
)


def claims_table(evidence: Evidence) -> Table:
    """One row a comparison; below, each claim in words with its verdict."""
    columns = (
        Column("claim", "claim"),
        Column("verdict", "verdict"),
        Column("claim_verdict", "claim's verdict", csv_only=True),
        Column("arm", "arm"),
        Column("against", "against"),
        Column("seeds", "n", digits(0)),
        Column("arm_percent", "arm %", digits(1)),
        Column("against_percent", "against %", digits(1)),
        Column("difference_points", "difference", digits(2)),
        Column("low_95_points", "95 % from", digits(2)),
        Column("high_95_points", "to", digits(2)),
        Column("low_90_points", "90 % from", digits(2), csv_only=True),
        Column("high_90_points", "to", digits(2), csv_only=True),
        Column("kind", "asked"),
        Column("margin_points", "margin", digits(1)),
        Column("detectable_points", "detectable", digits(2)),
        Column("remarks", "remarks"),
    )
    rows = tuple(
        Row(_comparison_cells(claim, comparison)) for claim in evidence.judgements for comparison in claim.comparisons
    )
    statements = tuple(
        f"{claim.name}, {claim.verdict}: {claim.plan.statement} Asked: {claim.asked}, in every row that applies."
        for claim in evidence.judgements
    )
    return Table("claims", columns, rows, _CLAIM_NOTES, asides=statements)


def _comparison_cells(claim: Judgement, comparison: Comparison) -> dict[str, Cell]:
    return {
        "claim": claim.name,
        "arm": comparison.plan.arm,
        "against": comparison.plan.against,
        "kind": claim.plan.kind,
        "margin_points": claim.plan.margin_points,
        "verdict": comparison.verdict.value,
        "claim_verdict": claim.verdict.value,
        "remarks": "; ".join(comparison.remarks) or None,
        **_difference_cells(comparison, claim.plan),
    }


def _difference_cells(comparison: Comparison, claim: ClaimPlan) -> dict[str, Cell]:
    arm, against, difference = comparison.arm, comparison.against, comparison.difference
    if arm is None or against is None or difference is None:
        return {}
    return {
        "seeds": comparison.seeds,
        "arm_percent": arm.accuracy.mean if arm.accuracy else None,
        "against_percent": against.accuracy.mean if against.accuracy else None,
        "difference_points": difference.mean,
        "low_95_points": difference.interval_95.low,
        "high_95_points": difference.interval_95.high,
        "low_90_points": difference.interval_90.low,
        "high_90_points": difference.interval_90.high,
        "detectable_points": difference.detectable if claim.kind == "gains" else difference.least_margin,
    }


def sweeps_table(evidence: Evidence) -> Table:
    """One row an arm; one without a record keeps its row, empty."""
    columns = (
        Column("sweep", "sweep"),
        Column("model", "model"),
        Column("batch", "batch", digits(0)),
        Column("steps_per_epoch", "steps/epoch", digits(0)),
        Column("optimizer", "rule"),
        Column("precision", "precision"),
        Column("top1_percent", "top-1 %", digits(1)),
        Column("low_95_percent", "95 % from", digits(1)),
        Column("high_95_percent", "to", digits(1)),
        Column("seeds", "n", digits(0)),
        Column("key", "tuned"),
        Column("chosen", "chosen", words.number),
        Column("tuning_trials", "trials", digits(0)),
        Column("at_edge", "at edge"),
        Column("chosen_from", "scaled from"),
        Column("flushed_percent", "flushed %", words.number),
        Column("tuning_diverged", "div. tuning", digits(0)),
        Column("final_diverged", "div. final", digits(0)),
        Column("minutes", "minutes", words.minutes),
        Column("description", "description", csv_only=True),
        Column("record", "record", csv_only=True),
    )
    recorded = {arm.name: arm for arm in evidence.arms}
    rows = tuple(
        Row(_arm_cells(recorded[name], sweep), anchor=arm_anchor(recorded[name]))
        if name in recorded
        else Row({"sweep": name, "description": sweep.description or None})
        for name, sweep in evidence.plan.sweeps.items()
    )
    return Table("sweeps", columns, rows, tuple(_sweep_notes(evidence)))


def arm_anchor(arm: Arm) -> str:
    """The place on the page where the sweep's provenance stands."""
    return f"sweep-{arm.name}"


def _sweep_notes(evidence: Evidence) -> Iterator[str]:
    yield (
        "trials: the budget that chose the value; n: fresh seeds with it. top-1: mean on the pictures that chose "
        f"nothing, a diverged trial as 0 %. {_INTERVALS}. flushed: share of updates that fp16 rounded to nothing, in "
        "the final trials; div.: diverged trials; minutes: of all trials."
    )
    if evidence.missing_sweeps:
        yield f"No record yet: {', '.join(evidence.missing_sweeps)}."
    if outdated := [arm.name for arm in evidence.arms if arm.outdated]:
        yield f"Recorded with settings that the plan has changed since: {', '.join(outdated)}."


def _arm_cells(arm: Arm, sweep: SweepPlan) -> dict[str, Cell]:
    record, settings = arm.record, arm.record.settings
    accuracy = arm.accuracy
    return {
        "sweep": arm.name,
        "model": words.model_name(settings.model),
        "batch": settings.batch.global_batch,
        "steps_per_epoch": record.steps_per_epoch,
        "optimizer": words.optimizer_name(settings.optimizer),
        "precision": settings.precision,
        "key": record.key,
        "tuning_trials": len(arm.tuning_trials),
        "chosen": record.chosen,
        "chosen_from": record.chosen_from,
        "at_edge": "yes" if record.at_edge else "no",
        "seeds": len(arm.final_trials),
        "top1_percent": accuracy.mean if accuracy else None,
        "low_95_percent": accuracy.interval_95.low if accuracy else None,
        "high_95_percent": accuracy.interval_95.high if accuracy else None,
        "flushed_percent": arm.flushed_percent,
        "tuning_diverged": sum(trial.diverged for trial in arm.tuning_trials),
        "final_diverged": sum(trial.diverged for trial in arm.final_trials),
        "minutes": sum(trial.wall_s for trial in record.trials) / 60,
        "description": sweep.description or None,
        "record": arm.path.as_posix(),
    }


def ledger_table(evidence: Evidence) -> Table:
    """Every trial, in the order in which it was made."""
    columns = (
        Column("sweep", "sweep"),
        Column("purpose", "purpose"),
        Column("value", "value", words.number),
        Column("seed", "seed", lambda seed: f"{seed:.0f}"),
        Column("tune_percent", "tuning %", digits(1)),
        Column("report_percent", "reported %", digits(1)),
        Column("train_loss", "loss", digits(3)),
        Column("skipped_steps", "skipped", digits(0)),
        Column("flushed_percent", "flushed %", words.number),
        Column("diverged", "diverged"),
        Column("wall_s", "time", words.duration),
    )
    rows = tuple(
        Row(_trial_cells(arm, trial), anchor=arm_anchor(arm)) for arm in evidence.arms for trial in arm.record.trials
    )
    notes = (
        "tuning, reported: top-1 on the pictures that choose values and on the others, which have no say in it; loss: "
        "on the training set in the last epoch; skipped: batches without a step, for an overflow in fp16.",
    )
    missing = tuple(Row({"sweep": name}) for name in evidence.missing_sweeps)
    return Table("ledger", columns, rows + missing, notes)


def _trial_cells(arm: Arm, trial: Trial) -> dict[str, Cell]:
    return {
        "sweep": arm.name,
        "purpose": trial.purpose,
        "value": trial.value,
        "seed": trial.seed,
        "tune_percent": arm.tune_percent(trial),
        "report_percent": arm.report_percent(trial),
        "train_loss": trial.train_loss,
        "skipped_steps": trial.skipped_steps,
        "flushed_percent": trial.flushed_percent,
        "diverged": "yes" if trial.diverged else "no",
        "wall_s": trial.wall_s,
    }
