"""The simulation held against measured steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fourminutes.plan import ReducePlan
from fourminutes.record import ReplayRecord
from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Sourced
from fourminutes.report.table import Cell, Column, Row, Table, digits, signed
from fourminutes.scale.validate import Held, held_against, rankings, verdict


def validation_table(evidence: Evidence) -> Table:
    """One row a replayed case of the records that the plan names."""
    return replays_table(evidence.replays)


def replays_table(replays: Sequence[Sourced[ReplayRecord]]) -> Table:
    """One row a replayed case."""
    columns = (
        Column("network", "network"),
        Column("processes", "procs", digits(0)),
        Column("case", "case"),
        Column("algorithm", "algorithm"),
        Column("bucket_mib", "bucket MiB", words.number),
        Column("lanes", "lanes", digits(0)),
        Column("wire", "wire", csv_only=True),
        Column("backward_s", "pass s", digits(2)),
        Column("measured_s", "measured s", digits(3)),
        Column("low_s", "25 %", digits(3)),
        Column("high_s", "75 %", digits(3)),
        Column("n", "n", digits(0)),
        Column("simulated_s", "simulated s", digits(3)),
        Column("error_percent", "off %", signed(1)),
        Column("apart_percent", "no overlap, off %", signed(1)),
        Column("beside_percent", "full overlap, off %", signed(1)),
        Column("record", "record", csv_only=True),
    )
    rows = tuple(
        Row(_cells(replay, case) | {"record": replay.path.as_posix()}, anchor=replay.anchor)
        for replay in replays
        for case in held_against(replay.record)
    )
    return Table("validation", columns, rows, tuple(_notes(replays)), empty="No step has been replayed yet.")


def _cells(replay: Sourced[ReplayRecord], case: Held) -> dict[str, Cell]:
    reduce = case.settings.reduce
    return {
        "network": words.model_name(replay.record.settings.model),
        "processes": case.processes,
        "case": case.case,
        "algorithm": _algorithm(reduce),
        # Of small tensors each has a call of its own, as of few segments each has one.
        "bucket_mib": None if reduce.segments or case.settings.tensors == "small" else reduce.bucket_mib,
        "lanes": reduce.lanes,
        "wire": reduce.wire,
        "backward_s": case.settings.backward_s,
        "measured_s": case.measured_s,
        "low_s": case.low_s,
        "high_s": case.high_s,
        "n": case.n,
        "simulated_s": case.simulated_s,
        "error_percent": case.error_percent,
        "apart_percent": case.apart_percent,
        "beside_percent": case.beside_percent,
    }


def _algorithm(reduce: ReducePlan) -> str:
    return reduce.algorithm if reduce.group_ranks is None else f"{reduce.algorithm} of {reduce.group_ranks}"


def _notes(replays: Sequence[Sourced[ReplayRecord]]) -> Iterator[str]:
    yield (
        "Computing was replayed as timed waits, from measured moments of each gradient's readiness stretched to the "
        "length of the pass; buckets, threads and collectives are those of training."
    )
    yield (
        "The simulation knows the collectives by themselves, on the same processes, and none of these steps. No "
        "overlap: computing, then all communication; full overlap: the longer of the pass and all communication."
    )
    links = dict.fromkeys(replay.record.link for replay in replays if replay.record.link)
    if links:
        yield f"Links: {', '.join(links)}."
    for name, small in (("Wire-bound", False), ("Latency-bound, a call a small tensor", True)):
        cases = [case for replay in replays for case in _of_kind(replay, small)]
        if cases:
            yield _summed_up(name, cases)
    pairs = [right for replay in replays for *_, right in rankings(_of_kind(replay, small=True))]
    if pairs:
        yield (
            f"Of {len(pairs)} latency-bound pairs that differ in their arrangement alone, and by more than their "
            f"quartiles, {sum(pairs)} are simulated in the right order."
        )


def _of_kind(replay: Sourced[ReplayRecord], small: bool) -> list[Held]:
    return [case for case in held_against(replay.record) if (case.settings.tensors == "small") == small]


def _summed_up(name: str, cases: list[Held]) -> str:
    found = verdict(cases)
    return (
        f"{name}: off by {found.median:.1f} % (median of {found.n}), at most {found.worst:.1f} %; no overlap "
        f"{found.apart_median:.1f} %, full overlap {found.beside_median:.1f} %."
    )
