"""Tables of one record each: the measured all-reduce, the predictions, the data set."""

from __future__ import annotations

from fourminutes.record import CollectiveTiming, SplitSummary
from fourminutes.report import words
from fourminutes.report.evidence import Evidence
from fourminutes.report.table import Cell, Column, Row, Table, digits


def allreduce_table(evidence: Evidence) -> Table:
    """Every measured size and algorithm."""
    columns = (
        Column("processes", "procs", digits(0)),
        Column("message_bytes", "size", words.size),
        Column("algorithm", "algorithm"),
        Column("group_ranks", "group", digits(0)),
        Column("wire", "wire"),
        Column("median_ms", "median ms", digits(3)),
        Column("lower_quartile_ms", "25 %", digits(3)),
        Column("upper_quartile_ms", "75 %", digits(3)),
        Column("bus_gbyte_s", "bus GB/s", digits(3)),
        Column("n", "n", digits(0)),
        Column("record", "record", csv_only=True),
    )
    rows = [
        Row(
            _timing_cells(timing) | {"processes": len(comm.record.placement.hosts), "record": comm.path.as_posix()},
            anchor=comm.anchor,
        )
        for comm in evidence.comms
        for timing in sorted(comm.record.timings, key=_order)
    ]
    return Table("allreduce", columns, tuple(rows), ("A call's time is that of its slowest process.",))


def _order(timing: CollectiveTiming) -> tuple[int, str, int, str]:
    return timing.message_bytes, timing.algorithm, timing.group_ranks, timing.wire


def _timing_cells(timing: CollectiveTiming) -> dict[str, Cell]:
    return {
        "message_bytes": timing.message_bytes,
        "algorithm": timing.algorithm,
        "group_ranks": timing.group_ranks,
        "wire": timing.wire,
        "median_ms": 1e3 * timing.median_s,
        "lower_quartile_ms": 1e3 * timing.lower_quartile_s,
        "upper_quartile_ms": 1e3 * timing.upper_quartile_s,
        "bus_gbyte_s": timing.bus_gbyte_s,
        "n": timing.repeats,
    }


def scaling_table(evidence: Evidence) -> Table:
    """One row a run and algorithm, one column a number of processes."""
    predictions = evidence.scale.record.predictions if evidence.scale else ()
    sizes = sorted({prediction.processes for prediction in predictions})
    columns = (
        Column("run", "run"),
        Column("algorithm", "algorithm"),
        *(Column(f"efficiency_percent_{size}", f"{size:,}", digits(1)) for size in sizes),
    )
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for prediction in predictions:
        key = (prediction.run, prediction.algorithm)
        cells = lines.setdefault(key, {"run": prediction.run, "algorithm": prediction.algorithm})
        cells[f"efficiency_percent_{prediction.processes}"] = prediction.efficiency_percent
    assumptions = evidence.scale.record.assumptions if evidence.scale else ()
    notes = ("Efficiency in % against one process; the heading is the number of processes.", *assumptions)
    anchor = evidence.scale.anchor if evidence.scale else None
    return Table("scaling", columns, tuple(Row(cells, "predicted", anchor) for cells in lines.values()), notes)


def data_table(evidence: Evidence) -> Table:
    """One row a split."""
    columns = (
        Column("split", "split"),
        Column("images", "images", digits(0)),
        Column("classes", "classes", digits(0)),
        Column("fewest", "fewest a class", digits(0)),
        Column("most", "most a class", digits(0)),
        Column("converted", "converted", digits(0)),
        Column("refused", "refused", digits(0)),
        Column("shards", "shards", digits(0)),
        Column("tar_bytes", "size", words.size),
        Column("dataset_hash", "data set", csv_only=True),
    )
    if evidence.manifest is None:
        return Table("data", columns, ())
    manifest = evidence.manifest.record
    rows = tuple(
        Row(
            {"split": name, "dataset_hash": manifest.dataset_hash, **_split_cells(split)},
            anchor=evidence.manifest.anchor,
        )
        for name, split in manifest.splits.items()
    )
    checked = f"; totals checked as those of {manifest.expected}" if manifest.expected else ""
    return Table("data", columns, rows, (f"Data set {manifest.dataset_hash[:16]}{checked}.",))


def _split_cells(split: SplitSummary) -> dict[str, Cell]:
    return {
        "images": split.samples,
        "classes": len(split.images_per_label),
        "fewest": min(split.images_per_label),
        "most": max(split.images_per_label),
        "converted": len(split.converted),
        "refused": len(split.refused),
        "shards": len(split.shards),
        "tar_bytes": split.tar_bytes,
    }
