"""What was measured and chosen, as text tables for the screen. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from fourminutes.comm.fit import UNLIMITED_BYTE_S
from fourminutes.comm.tuner import Way, curves_of
from fourminutes.plan import AlgorithmChoice
from fourminutes.record import CollectiveTiming, CommRecord, LinkFit, Placement, Provenance, StageFit, Tuning


def bench_table(record: CommRecord) -> str:
    """The record's timings and fits."""
    timings = [
        (
            f"{timing.message_bytes / 1024:g}",
            timing.algorithm,
            timing.group_ranks,
            timing.wire,
            f"{timing.median_s * 1e3:.3f}",
            f"{timing.lower_quartile_s * 1e3:.3f} to {timing.upper_quartile_s * 1e3:.3f}",
            f"{timing.bus_gbyte_s:.3f}",
        )
        for timing in record.timings
    ]
    fits = [
        (fit.algorithm, fit.group_ranks, fit.wire, f"{fit.alpha_s * 1e6:.1f}", _bandwidth(fit)) for fit in record.fits
    ]
    return "\n\n".join(
        (
            where(record.placement, record.provenance),
            _table(["KiB", "algorithm", "ranks a group", "wire", "median ms", "quartiles ms", "bus GB/s"], timings),
            _table(["fit", "ranks a group", "wire", "latency a step, us", "bandwidth GB/s"], fits),
            stage_table(record.stages),
        )
    )


def stage_table(stages: Sequence[StageFit]) -> str:
    """Latency and seconds a byte of every stage, with their 95 % intervals."""
    rows = [
        (
            fit.algorithm,
            fit.stage,
            fit.group_ranks,
            fit.wire,
            f"{fit.alpha_s.value * 1e3:.3f} ({fit.alpha_s.low * 1e3:.3f} to {fit.alpha_s.high * 1e3:.3f})",
            f"{fit.beta_s_byte.value * 1e9:.3f} ({fit.beta_s_byte.low * 1e9:.3f} to {fit.beta_s_byte.high * 1e9:.3f})",
        )
        for fit in stages
    ]
    return _table(
        ["stage of", "collective, among", "ranks a group", "wire", "alpha ms (95 %)", "beta ns/byte (95 %)"], rows
    )


def tuning_table(tuning: Tuning) -> str:
    """What was chosen, and from which times."""
    chosen = [(_up_to(choice.up_to_kib), _chosen(choice)) for choice in tuning.choices]
    parts = [
        where(tuning.placement, tuning.provenance),
        _measured(tuning.timings),
        stage_table(tuning.stages),
        _table(["up to KiB", "choice"], chosen),
    ]
    return "\n\n".join([*parts, *([_fusions(tuning)] if tuning.fusions else [])])


def _measured(timings: Sequence[CollectiveTiming]) -> str:
    """Median milliseconds, a column an arrangement; blank where it was out of the race."""
    curves = curves_of(timings)
    rows = [
        (
            f"{size / 1024:g}",
            *(f"{curve.at(size) * 1e3:.3f}" if size in curve.sizes_bytes else "" for curve in curves.values()),
        )
        for size in sorted({timing.message_bytes for timing in timings})
    ]
    return _table(["KiB", *map(_name, curves)], rows)


def _fusions(tuning: Tuning) -> str:
    rows = [
        (f"{one.bucket_mib:g}", one.buckets, f"{one.exposed_s * 1e3:.1f}", "*" * (one.bucket_mib == tuning.bucket_mib))
        for one in tuning.fusions
    ]
    return _table(["bucket MiB", "buckets", "exposed ms, predicted", "chosen"], rows)


def where(place: Placement, made: Provenance) -> str:
    """What the numbers are about, as nccl-tests begins its output."""
    hosts = len(set(place.hosts))
    on = f"{hosts} {'host' if hosts == 1 else 'hosts'}"
    return (
        f"# {len(place.hosts)} processes on {on}, {place.device}, {place.backend}, "
        f"torch {made.versions.get('torch', '?')}; a call takes as long as its slowest process\n"
        "# 1 KiB is 1,024 bytes on the wire; bus GB/s is 2(P-1)/P x bytes / median"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Numbers stand as they are written; a first column of sizes to the right."""
    align = ("right" if "iB" in headers[0] else "left", *["left"] * (len(headers) - 1))
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=align if rows else None)


def _bandwidth(fit: LinkFit) -> str:
    return "no limit seen" if fit.bandwidth_byte_s >= UNLIMITED_BYTE_S else f"{fit.bandwidth_byte_s / 1e9:.3f}"


def _name(way: Way) -> str:
    algorithm, group_ranks = way
    return algorithm if algorithm == "ring" else f"{algorithm} of {group_ranks}"


def _chosen(choice: AlgorithmChoice) -> str:
    if choice.algorithm == "ring":
        return choice.algorithm
    return f"{choice.algorithm} of {choice.group_ranks or 'the own groups'}"


def _up_to(up_to_kib: float | None) -> str:
    return "any" if up_to_kib is None else f"{up_to_kib:g}"
