"""Measured series as the report shows them: rates and efficiencies, each with its 95 % interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fourminutes.plan import BatchPlan, Plan, speed_hash
from fourminutes.record import ScalingRecord, read_record, scaling_as_asked
from fourminutes.report import words

_CONFIDENCE = 0.95
# Of each of two intervals that shall hold at once in 95 % of all cases.
_OF_TWO = 0.975
#: Parts of a step's time: field of `StepTimes`, and what the table calls it.
STEP_PARTS = (
    ("input_wait_s", "input"),
    ("forward_s", "forward"),
    ("backward_s", "backward"),
    ("exposed_reduce_s", "comm"),
    ("optimizer_s", "update"),
    ("other_s", "other"),
)


@dataclass(frozen=True)
class Estimated:
    """A number, between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scaling:
    """A series on one number of processes.

    Attributes:
        label: the series' name, with its plan's where there are several.
        path: the record's file.
        record: what was measured.
        outdated: whether the plan asks for something else by now.
        of_process: efficiency against one process of the series, in percent; None where that was not measured.
        of_node: likewise against one full node, where several nodes were measured too.
    """

    label: str
    path: Path
    record: ScalingRecord
    outdated: bool
    of_process: Estimated | None
    of_node: Estimated | None

    @property
    def anchor(self) -> str:
        """The place on the page where the record's provenance stands."""
        return f"record-{self.path.with_suffix('').as_posix().replace('/', '-')}"

    @property
    def rate(self) -> Estimated:
        """Images a second over all processes."""
        return middle(self.record.images_per_s)


def middle(values: Sequence[float], confidence: float = _CONFIDENCE) -> Estimated:
    """The median, with the interval of the median of what the values were drawn from.

    It goes from the k-th smallest to the k-th largest of the n values, and misses the median, whatever the spread, with
    probability 2 sum over i < k of binomial(n, i) / 2^n; k is the largest for which that is at most 1 - confidence
    (H. A. David, Order Statistics, section 2.5). Few values have no such k: their ends are given then, too near for six
    or fewer at 97.5 %.
    """
    ranked, count = sorted(values), len(values)
    k, missed = 1, 2 / 2**count
    while missed + 2 * math.comb(count, k) / 2**count <= 1 - confidence:
        missed += 2 * math.comb(count, k) / 2**count
        k += 1
    return Estimated(median(ranked), ranked[k - 1], ranked[count - k])


def efficiency(record: ScalingRecord, base: ScalingRecord, times: int) -> Estimated:
    """The rate of `record` as a share of `times` that of `base`, in percent.

    The interval goes from the least of the one rate over the most of the other to the reverse, with 97.5 % for each, so
    that both hold at once in 95 % of all cases.
    """
    if record is base:
        return Estimated(100, 100, 100)
    own, other = (middle(one.images_per_s, _OF_TWO) for one in (record, base))
    return Estimated(
        100 * own.value / (times * other.value),
        100 * own.low / (times * other.high),
        100 * own.high / (times * other.low),
    )


def read_scalings(plan: Plan, paths: Sequence[Path]) -> tuple[Scaling, ...]:
    """The records at `paths` by plan, series and number of processes, each beside what it is compared with.

    Raises:
        UserError: a record is damaged or of another kind.
    """
    records = {path: read_record(path, ScalingRecord) for path in paths}
    several_plans = len({record.plan for record in records.values()}) > 1
    ordered = sorted(records.items(), key=lambda item: (item[1].plan, item[1].series, item[1].processes))
    return tuple(
        Scaling(
            label=f"{record.plan}/{record.series}" if several_plans else record.series,
            path=path,
            record=record,
            outdated=path in plan.scaling_records and not scaling_as_asked(plan, record),
            of_process=_of_process(record, _comparable(record, records.values())),
            of_node=_of_node(record, _comparable(record, records.values())),
        )
        for path, record in ordered
    )


def in_a_line(record: ScalingRecord) -> str:
    """What came out, for the terminal."""
    rate = middle(record.images_per_s)
    split = ", ".join(f"{name} {record.percent(part):.1f} %" for part, name in STEP_PARTS)
    return (
        f"{record.series} on {words.count(record.processes, 'process')}: {rate.value:,.1f} images/s "
        f"(95 %: {rate.low:,.1f} to {rate.high:,.1f}), {step_ms(record):,.1f} ms a step: {split}"
    )


def step_ms(record: ScalingRecord) -> float:
    """Milliseconds a step, of the median repeat."""
    return 1e3 * median(repeat.step_s for repeat in record.repeats)


def _of_process(record: ScalingRecord, alike: Sequence[ScalingRecord]) -> Estimated | None:
    """Efficiency against one process scaled up, where one was measured."""
    base = next((one for one in alike if one.processes == 1), None)
    return efficiency(record, base, record.processes) if base else None


def _of_node(record: ScalingRecord, alike: Sequence[ScalingRecord]) -> Estimated | None:
    """Efficiency against one node as full scaled up, where one was measured, and several."""
    as_full = [one for one in alike if _per_node(one) == _per_node(record)]
    base = next((one for one in as_full if one.nodes == 1), None)
    several = any(one.nodes > 1 for one in as_full)
    return efficiency(record, base, record.nodes) if base and several else None


def _per_node(record: ScalingRecord) -> int | None:
    """Processes on each node; None where some have more than others."""
    sizes = set(Counter(record.placement.hosts).values())
    return sizes.pop() if len(sizes) == 1 else None


def _comparable(record: ScalingRecord, records: Iterable[ScalingRecord]) -> list[ScalingRecord]:
    """Those that time the same work in the same way on the same kind of device, the record itself among them."""
    return [one for one in records if _work(one) == _work(record)]


def _work(record: ScalingRecord) -> tuple[object, ...]:
    settings = record.settings
    batch = settings.batch.global_batch
    device = record.provenance.cpu if record.placement.device == "cpu" else record.placement.device
    on_one = {"processes": 1, "processes_per_node": None, "batch": BatchPlan()}
    return (
        record.plan,
        record.series,
        record.measured.key,
        record.dataset_hash,
        batch if record.measured.mode == "strong" else batch / record.processes,
        speed_hash(settings.model_copy(update=on_one)),
        device,
    )
