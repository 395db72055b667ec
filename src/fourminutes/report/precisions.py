"""Recorded runs, and measured series, that differ in their precision alone, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fourminutes.plan import RunPlan
from fourminutes.plan.run import LossScalePlan
from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Run
from fourminutes.report.repeats import Mean, mean_of, repeats_of
from fourminutes.report.scalings import Scaling


@dataclass(frozen=True)
class Rate:
    """One precision of a group.

    Attributes:
        label: of the run or series.
        settings: every value of it.
        images_per_s: its rate a device, where it is recorded: over runs with other seeds, or the repeats of a series.
        ratio: that over fp32's.
        hardware: what computed, in words.
        kind: `run`, or `series` where steps alone were timed.
        source: that, and on what input, in words.
        anchor: the place of its record on the page.
        data: what was computed on; rates compare only where that is the same.
    """

    label: str
    settings: RunPlan
    images_per_s: Mean | None = None
    ratio: float | None = None
    hardware: str | None = None
    kind: Literal["run", "series"] = "run"
    source: str = "no record yet"
    anchor: str | None = None
    data: str | None = None


def groups(evidence: Evidence) -> tuple[tuple[Rate, ...], ...]:
    """Rates of equal settings but for the precision, of which there are two at least; fp32 first, then as they come.

    A run of the plan without a record keeps its place, empty.
    """
    alike: dict[tuple[str, ...], list[Rate]] = {}
    for rate in [*_of_runs(evidence), *map(_of_series, evidence.scalings)]:
        alike.setdefault((rate.kind, _but_precision(rate.settings)), []).append(rate)
    several = [rates for rates in alike.values() if len({rate.settings.precision for rate in rates}) > 1]
    return tuple(_group(rates) for rates in several)


def _of_runs(evidence: Evidence) -> Iterator[Rate]:
    for slot in evidence.slots:
        if isinstance(slot, Run):
            yield _of_run(slot, evidence.runs)
        elif slot.settings:
            yield Rate(slot.label, slot.settings)


def _of_run(run: Run, runs: Sequence[Run]) -> Rate:
    settings = run.record.settings
    return Rate(
        run.label,
        settings,
        mean_of([one.images_per_s / settings.processes for one in repeats_of(run, runs)]),
        hardware=words.hardware_brief(run.record.placement, run.record.provenance),
        source="run",
        anchor=run.anchor,
        data=run.record.dataset_hash,
    )


def _of_series(one: Scaling) -> Rate:
    record = one.record
    return Rate(
        one.label,
        record.settings,
        mean_of([rate / record.processes for rate in record.images_per_s]),
        hardware=words.hardware_brief(record.placement, record.provenance),
        kind="series",
        source=f"series, {record.measured.input} input",
        anchor=one.anchor,
        # Where steps were timed again they are no other seed of the same: each folder of records stands for itself.
        data=f"{record.dataset_hash} {one.path.parent}",
    )


def _but_precision(settings: RunPlan) -> str:
    """The settings as text, without the precision and what only one precision has or nothing is done with."""
    same: dict[str, object] = {"precision": "fp32", "loss_scale": LossScalePlan(), "seed": 0, "description": ""}
    same["recipe"] = None
    if settings.processes == 1:
        # Nothing travels.
        same["reduce"] = type(settings.reduce)()
    return settings.model_copy(update=same).model_dump_json()


def _group(alike: Sequence[Rate]) -> tuple[Rate, ...]:
    """One rate a precision and kind of hardware; repeats with other seeds are one."""
    rates: dict[tuple[object, ...], Rate] = {}
    for rate in sorted(alike, key=lambda rate: rate.settings.precision != "fp32"):
        where = rate.data, rate.hardware
        key = (rate.settings.precision, *where)
        if key not in rates:
            base = rates.get(("fp32", *where), rate if rate.settings.precision == "fp32" else None)
            rates[key] = _against(rate, base)
    return tuple(rates.values())


def _against(rate: Rate, base: Rate | None) -> Rate:
    if rate.images_per_s is None or base is None or base.images_per_s is None:
        return rate
    return replace(rate, ratio=rate.images_per_s.value / base.images_per_s.value)
