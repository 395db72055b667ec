"""Which recorded runs may stand beside a published ablation."""

from __future__ import annotations

from fourminutes.plan import RunPlan
from fourminutes.report.evidence import Evidence, Run, Wanted, but_seed
from fourminutes.report.published import FILLING_PLAN, Ablation
from fourminutes.report.repeats import repeats_of


def matching(row: Ablation, evidence: Evidence) -> tuple[Run, ...]:
    """The recorded runs that do what the row describes: those of the first such recipe of the slots, one a seed.

    Where that one has no record, no other recipe takes its place.
    """
    first = next((slot for slot in evidence.slots if _fills(row, slot)), None)
    same = [run for run in evidence.runs if first and _fills(row, run) and _same_recipe(run, first)]
    return repeats_of(same[0], evidence.runs) if same else ()


def _fills(row: Ablation, slot: Run | Wanted) -> bool:
    """Whether the run does what the row describes, on ImageNet, or would."""
    if isinstance(slot, Run):
        return slot.on_imagenet and _matches(row, slot.record.settings)
    if slot.settings:
        return slot.settings.model.width == 1 and _matches(row, slot.settings)
    return (slot.plan, slot.run) == (FILLING_PLAN, row.fill.run)


def _same_recipe(run: Run, slot: Run | Wanted) -> bool:
    settings = slot.record.settings if isinstance(slot, Run) else slot.settings
    return settings is not None and but_seed(run.record.settings) == but_seed(settings)


def _matches(row: Ablation, settings: RunPlan) -> bool:
    """Whether a run of these settings does what the row describes: same network, batch, rule and decay."""
    match = row.match
    spared = {"bias", "norm"} if match.no_decay else set()
    return (
        settings.model.name == match.model
        and (match.model != "alexnet_bn" or settings.model.bn_after_pool5 == match.bn_after_pool5)
        and settings.optimizer.kind == match.optimizer
        and not settings.optimizer.nesterov
        and set(settings.optimizer.no_decay) == spared
        and settings.batch.global_batch == row.batch.value
        and (row.epochs is None or settings.epochs == row.epochs.value)
    )
