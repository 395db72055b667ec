"""Measuring the cases of a replay one after another, into a record that grows with each and can be gone on with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import distributed

from fourminutes.comm.collectives import ALGORITHMS
from fourminutes.comm.fusion import buckets_of
from fourminutes.comm.group import device_of, process_group
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.ready import noise, readiness_of
from fourminutes.comm.replay import replay_steps
from fourminutes.comm.timing import arrangements, time_calls
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.comm.tune import require_several
from fourminutes.comm.tuner import Readiness, messages_of, stretched
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.plan import ReducePlan, Wire
from fourminutes.plan.replay import SMALL_BYTES, ReplayCase, ReplayPlan
from fourminutes.progress import progress
from fourminutes.record import (
    CollectiveTiming,
    ReplayedCase,
    ReplayRecord,
    provenance,
    read_record,
    utc_now,
    write_record,
)

# Sizes of the collectives: from what latency decides about on, a factor apart that no bucket size is a power of.
_SMALLEST_BYTES, _FACTOR = 768, 6
_CALLS = 5
# Up to this size a call is short, and chance decides how long one takes alone: a row of them is timed.
_SHORT_BYTES, _IN_A_ROW = 2**16, 32
# Beyond this size a call is long, and one is like another.
_LARGE_BYTES, _FEW_CALLS = 16 * 2**20, 3
_ROW, _ROW_READY_S = 64, 0.01
_ON_ONE_HOST = 2  # ranks a group, where all share one host


def run_replay(settings: ReplayPlan, out: Path, *, link: str = "") -> None:
    """Measure what of the cases `out` does not hold yet; rank 0 writes it after each. Called by every process.

    Raises:
        UserError: one process alone was started; or `out` holds steps of other settings, or of other processes.
    """
    launch = require_several(resolve_launch())
    with process_group(launch):
        topology = discover(launch, _ON_ONE_HOST if launch.is_one_host else None)
        whole = _readiness(settings, device_of(launch))
        record = _agreed(_begun(settings, whole, out, launch, topology, link) if launch.is_first else None)
        if record.bucket_s is None:
            for timings in _timings(record, launch, topology):
                record = record.model_copy(update={"timings": (*record.timings, *timings)})
                if launch.is_first:
                    write_record(out, record)
            record = record.model_copy(update={"bucket_s": _bucket_s(record.timings, topology)})
            if launch.is_first:
                write_record(out, record)
        missing = [name for name in settings.cases if name not in record.cases]
        with progress(len(missing), "case", "replay", enabled=launch.is_first) as bar:
            for name in missing:
                done = _replayed(record, settings.cases[name], topology)
                record = record.model_copy(update={"cases": {**record.cases, name: done}})
                if launch.is_first:
                    write_record(out, record)
                bar.update()


def _begun(
    settings: ReplayPlan, whole: Readiness, out: Path, launch: Launch, topology: Topology, link: str
) -> ReplayRecord | UserError:
    """The record so far: what `out` holds, or a new one without a case."""
    where = placement(launch, topology)
    new = ReplayRecord(
        settings=settings,
        tensor_bytes=whole.tensor_bytes,
        ready_s=whole.ready_s,
        placement=where,
        provenance=provenance(),
        group_ranks=topology.group_ranks,
        link=link,
        timings=(),
        cases={},
    )
    if not out.is_file():
        return new
    try:
        return _gone_on_with(read_record(out, ReplayRecord), new, out)
    except UserError as error:
        return error


def _gone_on_with(old: ReplayRecord, new: ReplayRecord, out: Path) -> ReplayRecord:
    """The old record, if its steps are of the same settings; cases may have come, and other ones gone."""
    without = {"cases": new.settings.cases}
    if old.settings.model_copy(update=without) != new.settings or old.placement.hosts != new.placement.hosts:
        raise UserError(
            f"{out}: holds steps of other settings or processes; take its name for another file, or delete it"
        )
    kept = {name: case for name, case in old.cases.items() if new.settings.cases.get(name) == case.settings}
    return old.model_copy(update={"settings": new.settings, "cases": kept})


def _agreed(first: ReplayRecord | UserError | None) -> ReplayRecord:
    """Rank 0's answer for all; what it refuses, all do."""
    values = [first]
    distributed.broadcast_object_list(values, src=0)
    if isinstance(values[0], ReplayRecord):
        return values[0]
    raise values[0] if isinstance(values[0], UserError) else UserError("rank 0 answered nothing")


def _readiness(settings: ReplayPlan, device: torch.device) -> Readiness:
    """As given, or measured here; called by all ranks.

    Raises:
        UserError: there are not as many moments as gradients.
    """
    network = build_model(settings.model, settings.classes, seed=0)
    if not settings.ready_s:
        return readiness_of(network.to(device), noise(settings.images, settings.model.image_px, device))
    sizes = tuple(4 * weight.numel() for weight in network.parameters() if weight.requires_grad)
    if len(settings.ready_s) != len(sizes):
        raise UserError(
            f"ready_s: {len(settings.ready_s)} moments, but {settings.model.name} has {len(sizes)} gradients"
        )
    return Readiness(sizes, settings.ready_s)


def _timings(record: ReplayRecord, launch: Launch, topology: Topology) -> Iterator[list[CollectiveTiming]]:
    """The collectives alone that the record does not hold yet, size by size.

    At sizes that no bucket has, in every arrangement and number format of the cases.
    """
    settings, largest = record.settings, _largest_bytes(record)
    groups = sorted(_group_sizes(settings.cases) - {topology.group_ranks})
    topologies = [topology, *(topology.regrouped(size) for size in groups)]
    algorithms = {name for case in settings.cases.values() for name in case.reduce.algorithms} | {"ring"}
    names = [name for name in ALGORITHMS if name in algorithms]
    items = [
        item
        for item in arrangements(tuple(names), topologies, tuple(largest))
        if item.algorithm == "ring" or item.group_ranks > 1  # groups of one are the ring
    ]
    held = {(one.algorithm, one.group_ranks, one.wire, one.message_bytes) for one in record.timings}
    size = _SMALLEST_BYTES
    while wanted := [item for item in items if size < _FACTOR * largest[item.wire]]:
        missing = [item for item in wanted if (item.algorithm, item.group_ranks, item.wire, size) not in held]
        few, row = size > _LARGE_BYTES, _IN_A_ROW if size <= _SHORT_BYTES else 1
        repeats = _FEW_CALLS if few else _CALLS
        if missing:
            calls = time_calls(missing, size, device_of(launch), repeats=repeats, warm_up=not few, in_a_row=row)
            yield [one.timing(launch.world_size) for one in calls]
        size *= _FACTOR


def _largest_bytes(record: ReplayRecord) -> dict[Wire, float]:
    """The largest message of the cases in each number format."""
    found: dict[Wire, float] = {}
    whole = Readiness(record.tensor_bytes, record.ready_s)
    for case in record.settings.cases.values():
        own = _readiness_of(whole, case)
        messages = messages_of(own, buckets_of(own.tensor_bytes, case.reduce), case.reduce.wire)
        found[case.reduce.wire] = max(found.get(case.reduce.wire, 0.0), *(size for _, size in messages))
    return found


def _readiness_of(whole: Readiness, case: ReplayCase) -> Readiness:
    return stretched(whole, case.backward_s, SMALL_BYTES if case.tensors == "small" else None)


def _bucket_s(timings: Sequence[CollectiveTiming], topology: Topology) -> float:
    """What a bucket takes besides its collective: casts, division, threads, on cores that ranks may share.

    From a row of tiny buckets, all ready at once, by the library's all-reduce, one after another.
    """
    row = Readiness((_SMALLEST_BYTES,) * _ROW, (_ROW_READY_S,) * _ROW)
    wire = timings[0].wire
    one_by_one = ReducePlan(bucket_mib=_SMALLEST_BYTES / 2**20, lanes=1, wire=wire)
    steps_s = replay_steps(row, one_by_one, topology, forward_s=0.0, optimizer_s=0.0, repeats=_CALLS)
    alone_s = next(
        timing.median_s
        for timing in timings
        if (timing.algorithm, timing.wire, timing.message_bytes) == ("ring", wire, _SMALLEST_BYTES)
    )
    return max(0.0, (statistics.median(steps_s) - _ROW_READY_S) / _ROW - alone_s)


def _group_sizes(cases: Mapping[str, ReplayCase]) -> set[int]:
    """Ranks a group that some case names."""
    own = {case.reduce.group_ranks for case in cases.values()}
    chosen = {choice.group_ranks for case in cases.values() for choice in case.reduce.choices}
    return {size for size in own | chosen if size is not None}


def _replayed(record: ReplayRecord, case: ReplayCase, topology: Topology) -> ReplayedCase:
    settings = record.settings
    whole = Readiness(record.tensor_bytes, record.ready_s)
    own = topology.regrouped(case.reduce.group_ranks) if case.reduce.group_ranks else topology
    times = replay_steps(
        _readiness_of(whole, case),
        case.reduce,
        own,
        forward_s=settings.forward_s,
        optimizer_s=settings.optimizer_s,
        repeats=settings.repeats,
        warm_up=settings.warm_up,
    )
    return ReplayedCase(settings=case, step_s=tuple(times), written=utc_now())
