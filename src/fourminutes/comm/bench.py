"""Measuring the collectives on the processes at hand, one algorithm beside another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fourminutes.comm.calls import Calls
from fourminutes.comm.collectives import require_even
from fourminutes.comm.fit import fit_links, fit_stages
from fourminutes.comm.group import COLLECTIVES_WAIT_LONGER_S, device_of, process_group, require_device
from fourminutes.comm.launch import TIMEOUT_S, Launch, resolve_launch
from fourminutes.comm.timing import Arrangement, arrangements, time_calls
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.plan import CommBenchPlan
from fourminutes.progress import progress
from fourminutes.record import CommRecord, provenance

WARMUP_CALLS = 2
# On one host there is one group by host, and the hierarchy would have no second level to show.
_GROUP_RANKS_ON_ONE_HOST = 2


@dataclass(frozen=True)
class Bench:
    """What was measured: the record, and every call that its numbers come from."""

    record: CommRecord
    calls: tuple[Calls, ...]


def run_bench(settings: CommBenchPlan, *, plan: str) -> Bench | None:
    """Time every algorithm at every size over all processes; rank 0 gets what came of it, the others None.

    Called by every process of the launcher. Groups are those of `settings.group_ranks`; left empty they are the hosts,
    or pairs where all processes share one host. `torus` is measured where groups are of one size.

    Args:
        settings: sizes, algorithms, groups, number formats, repeats.
        plan: name of the plan, for the record.

    Raises:
        UserError: the number of processes is not the one that the settings ask for, or only the torus is asked for and
            no groups are of one size.
    """
    launch = resolve_launch()
    _require_processes(settings, launch)
    timeout_s = settings.lost_after_s + COLLECTIVES_WAIT_LONGER_S
    with process_group(launch, timeout_s=timeout_s):
        topologies = groupings(launch, settings.group_ranks, timeout_s=timeout_s)
        items = arrangements(settings.algorithms, topologies, settings.wires)
        if not items:
            require_even(topologies[0])
        calls = tuple(_measure(settings, launch, items))
        where = placement(launch, topologies[0])
    if not launch.is_first:
        return None
    timings = tuple(one.timing(launch.world_size) for one in calls)
    record = CommRecord(
        plan=plan,
        settings=settings,
        placement=where,
        provenance=provenance(),
        timings=timings,
        fits=fit_links(timings, launch.world_size),
        stages=fit_stages(calls),
    )
    return Bench(record, calls)


def groupings(launch: Launch, group_ranks: Sequence[int], *, timeout_s: float = TIMEOUT_S) -> list[Topology]:
    """The processes in groups of each size, or by host where there is none; called by all ranks, in `process_group`."""
    if not group_ranks:
        by_host = _GROUP_RANKS_ON_ONE_HOST if launch.is_one_host else None
        return [discover(launch, by_host, timeout_s=timeout_s)]
    # No group is larger than all processes.
    first, *others = dict.fromkeys(min(ranks, launch.world_size) for ranks in group_ranks)
    topology = discover(launch, first, timeout_s=timeout_s)
    return [topology, *(topology.regrouped(ranks) for ranks in others)]


def write_calls(path: Path, bench: Bench) -> None:
    """Write every timed call as a row of a Parquet file: size, algorithm, group, number format, call, seconds."""
    rows = [
        {
            "message_bytes": one.message_bytes,
            "algorithm": one.algorithm,
            "group_ranks": one.group_ranks,
            "wire": one.wire,
            "call": number,
            "seconds": seconds,
        }
        for one in bench.calls
        for number, seconds in enumerate(one.seconds)
    ]
    about = {"fourminutes": bench.record.model_dump_json(include={"plan", "settings", "placement", "provenance"})}
    with written_aside(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(about), aside)


def _require_processes(settings: CommBenchPlan, launch: Launch) -> None:
    if launch.world_size != settings.processes:
        n = settings.processes
        raise UserError(
            f"comm.processes: {n} are asked for, {launch.world_size} run; start it by "
            f"`fourminutes launch --processes {n} -- fourminutes comm bench ...`, by torchrun or by srun"
        )
    require_device("comm", settings.device, launch)


def _measure(settings: CommBenchPlan, launch: Launch, items: Sequence[Arrangement]) -> Iterator[Calls]:
    device = device_of(launch)
    with progress(len(settings.sizes_bytes), "size", "collectives", enabled=launch.is_first) as bar:
        for size in settings.sizes_bytes:
            yield from time_calls(items, size, device, repeats=settings.repeats, warm_up=WARMUP_CALLS)
            bar.update()
