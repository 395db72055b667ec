"""Measuring, within a given time, what the tuner chooses from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import distributed

from fourminutes.comm.calls import Calls
from fourminutes.comm.collectives import ALGORITHMS
from fourminutes.comm.fit import fit_stages
from fourminutes.comm.group import device_of, process_group
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.timing import Arrangement, arrangements, time_calls
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.comm.tuner import Curve, Readiness, Way, best_fusion, choose, curves_of, fusions
from fourminutes.errors import UserError
from fourminutes.plan import WIRE_BYTES, Wire
from fourminutes.record import Tuning, provenance

_SMALLEST_BYTES, _FACTOR = 1024, 4
#: Largest message where no model says how large they can be.
LARGEST_BYTES = 64 * 2**20
_LEAST_REPEATS, _MOST_REPEATS = 3, 25
# Times are said to grow with size from this many times the smallest message's on, and one to be behind from so many
# times the best one's.
_GROWN, _BEHIND = 3.0, 1.5


@dataclass(frozen=True)
class About:
    """What a tuning is for: names of plan and run, and the run's `reduce.group_ranks`."""

    plan: str = ""
    run: str = ""
    group_ranks: int | None = None


def tune(
    launch: Launch,
    topologies: Sequence[Topology],
    *,
    wire: Wire,
    budget_s: float,
    own_group_ranks: int | None = None,
    ready: Callable[[], Readiness] | None = None,
    about: About | None = None,
) -> Tuning:
    """Measure all arrangements for about `budget_s` seconds, and choose. Called by all ranks; all get the same choices.

    Args:
        launch: this process's place.
        topologies: the processes in the groups to choose from.
        wire: number format on the wire.
        budget_s: how long to measure, in seconds; the last size may end a little later.
        own_group_ranks: size of the groups that the run has anyway, which a choice need not name.
        ready: finds out when the gradients of a model are ready; None chooses no bucket size.
        about: what the tuning is for.
    """
    end_s = time.perf_counter() + budget_s
    readiness = ready() if ready else None
    largest = LARGEST_BYTES if readiness is None else sum(readiness.tensor_bytes) * WIRE_BYTES[wire] // 4
    calls = _measure(arrangements(tuple(ALGORITHMS), topologies, [wire]), device_of(launch), largest, end_s)
    timings = tuple(one.timing(launch.world_size) for one in calls)
    curves = curves_of(timings)
    choices = choose(curves, own_group_ranks)
    candidates = () if readiness is None else fusions(readiness, curves, choices, wire)
    return Tuning(
        **asdict(about or About()),
        wire=wire,
        placement=placement(launch, topologies[0]),
        provenance=provenance(),
        took_s=budget_s + time.perf_counter() - end_s,
        timings=timings,
        stages=fit_stages(calls),
        choices=choices,
        ready_s=() if readiness is None else readiness.ready_s,
        fusions=candidates,
        bucket_mib=best_fusion(candidates).bucket_mib if candidates else None,
    )


def tune_here(wire: Wire, *, groups: Sequence[int], budget_s: float) -> Tuning | None:
    """Tune over the processes at hand, for no model in particular; rank 0 gets what came of it, the others None.

    Raises:
        UserError: one process alone was started.
    """
    launch = require_several(resolve_launch())
    with process_group(launch):
        own = discover(launch)
        topologies = groupings_to_try(own, groups or group_sizes(own.world_size))
        tuning = tune(launch, topologies, wire=wire, budget_s=budget_s, own_group_ranks=own.group_ranks)
    return tuning if launch.is_first else None


def require_several(launch: Launch) -> Launch:
    """`launch`, if it has several processes.

    Raises:
        UserError: it has one.
    """
    if launch.world_size == 1:
        raise UserError(
            "comm tune: one process has nobody to sum with; start several by "
            "`fourminutes launch --processes 4 -- fourminutes comm tune ...`, by torchrun or by srun"
        )
    return launch


def groupings_to_try(own: Topology, sizes: Sequence[int]) -> list[Topology]:
    """The groups that there are, as by host, and consecutive ranks in groups of other sizes. Called by all ranks."""
    others = [size for size in dict.fromkeys(sizes) if 1 < size <= own.world_size and size != own.group_ranks]
    grouped = [own.regrouped(size) for size in others]
    return [own, *grouped] if own.group_ranks > 1 or not grouped else grouped


def group_sizes(world_size: int) -> list[int]:
    """Sizes of groups worth trying beside the hosts' own: the smaller powers of two."""
    return [2**power for power in range(1, 4) if 2**power <= world_size // 2]


def _measure(items: Sequence[Arrangement], device: torch.device, largest_bytes: int, end_s: float) -> list[Calls]:
    """Rising sizes with as many calls as the time left has room for; what can win no more is left out from there on."""
    sizes = _sizes(largest_bytes)
    calls: list[Calls] = []
    for number, size in enumerate(sizes):
        contenders = _contenders(items, calls)
        if _agreed(end_s - time.perf_counter()) < (1 + _LEAST_REPEATS) * _round_s(contenders, calls, size):
            break
        warm_up = time_calls(contenders, size, device, repeats=1)
        share_s = _agreed(end_s - time.perf_counter()) / (len(sizes) - number)
        repeats = int(share_s / sum(one.seconds[0] for one in warm_up))
        repeats = min(max(repeats, _LEAST_REPEATS), _MOST_REPEATS)
        calls += time_calls(contenders, size, device, repeats=repeats)
    return calls


def _sizes(largest_bytes: int) -> list[int]:
    sizes = [_SMALLEST_BYTES]
    while sizes[-1] < largest_bytes:
        sizes.append(_FACTOR * sizes[-1])
    return sizes


def _contenders(items: Sequence[Arrangement], calls: Sequence[Calls]) -> list[Arrangement]:
    """The arrangements that may still be the fastest beyond the sizes measured so far.

    Where times have begun to grow with size, one that is behind by a half, and grows no slower, has lost.
    """
    curves = _curves(calls)
    if not calls or min(curve.growth for curve in curves.values()) < _GROWN:
        return list(items)
    size = calls[-1].message_bytes
    best = min(curves.values(), key=lambda curve: curve.at(size))
    lost = {
        way
        for way, curve in curves.items()
        if curve.at(size) > _BEHIND * best.at(size) and curve.last_slope >= best.last_slope
    }
    return [item for item in items if (item.algorithm, item.group_ranks) not in lost]


def _round_s(contenders: Sequence[Arrangement], calls: Sequence[Calls], size: int) -> float:
    """About how long one call of each takes at `size`; nothing is known before the first."""
    curves = _curves(calls)
    return sum(curves[item.algorithm, item.group_ranks].at(size) for item in contenders) if calls else 0.0


def _curves(calls: Sequence[Calls]) -> dict[Way, Curve]:
    return curves_of([one.timing(processes=2) for one in calls])


def _agreed(left_s: float) -> float:
    """Rank 0's time left, so that all ranks decide alike."""
    values = [left_s]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
