"""Recorded runs that differ in their precision alone, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourminutes.plan import RunPlan
from fourminutes.plan.run import LossScalePlan
from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Run, Wanted
from fourminutes.report.repeats import Mean, mean_of, repeats_of


@dataclass(frozen=True)
class Rate:
    """One precision of a group: its rate a device in images/s and that over fp32's, where they are recorded."""

    label: str
    settings: RunPlan
    run: Run | None
    images_per_s: Mean | None
    ratio: float | None


def groups(evidence: Evidence) -> tuple[tuple[Rate, ...], ...]:
    """Runs of equal settings but for the precision, of which there are two at least; fp32 first, then as they come.

    A run of the plan without a record keeps its place, empty.
    """
    alike: dict[str, list[Run | Wanted]] = {}
    for slot in evidence.slots:
        if settings := _settings(slot):
            alike.setdefault(_but_precision(settings), []).append(slot)
    several = [slots for slots in alike.values() if len({_precision(slot) for slot in slots}) > 1]
    return tuple(_group(slots) for slots in several)


def _settings(slot: Run | Wanted) -> RunPlan | None:
    return slot.record.settings if isinstance(slot, Run) else slot.settings


def _precision(slot: Run | Wanted) -> str:
    settings = _settings(slot)
    return settings.precision if settings else ""


def _but_precision(settings: RunPlan) -> str:
    """The settings as text, without the precision and what only one precision has or nothing is done with."""
    same: dict[str, object] = {"precision": "fp32", "loss_scale": LossScalePlan(), "seed": 0, "description": ""}
    same["recipe"] = None
    if settings.processes == 1:
        # Nothing travels.
        same["reduce"] = type(settings.reduce)()
    return settings.model_copy(update=same).model_dump_json()


def _group(slots: Sequence[Run | Wanted]) -> tuple[Rate, ...]:
    """One rate a precision and kind of hardware; repeats with other seeds are one."""
    rates: dict[tuple[object, ...], Rate] = {}
    for slot in sorted(slots, key=lambda slot: _precision(slot) != "fp32"):
        settings = _settings(slot)
        assert settings is not None
        rate = _rate(slot, settings, slots)
        key = (settings.precision, _hardware(slot))
        if key not in rates:
            base = rates.get(("fp32", _hardware(slot)), rate if settings.precision == "fp32" else None)
            rates[key] = _against(rate, base)
    return tuple(rates.values())


def _rate(slot: Run | Wanted, settings: RunPlan, slots: Sequence[Run | Wanted]) -> Rate:
    if isinstance(slot, Wanted):
        return Rate(slot.label, settings, None, None, None)
    runs = [one for one in slots if isinstance(one, Run)]
    each = [one.images_per_s / settings.processes for one in repeats_of(slot, runs)]
    return Rate(slot.label, settings, slot, mean_of(each), None)


def _hardware(slot: Run | Wanted) -> tuple[str, str] | None:
    """What was trained on what; rates compare only where that is the same."""
    if isinstance(slot, Wanted):
        return None
    return slot.record.dataset_hash, words.hardware_brief(slot.record.placement, slot.record.provenance)


def _against(rate: Rate, base: Rate | None) -> Rate:
    if rate.images_per_s is None or base is None or base.images_per_s is None:
        return rate
    ratio = rate.images_per_s.value / base.images_per_s.value
    return Rate(rate.label, rate.settings, rate.run, rate.images_per_s, ratio)
