"""The all-reduce of a run, settled: as its plan says, as a tuning found, or tuned as the run starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fourminutes.comm.group import device_of, process_group
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.ready import noise, readiness_of
from fourminutes.comm.topology import Topology, discover
from fourminutes.comm.tune import About, group_sizes, groupings_to_try, require_several, tune
from fourminutes.comm.tuner import tuned
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.plan import Plan, ReducePlan, RunPlan, run_of
from fourminutes.record import Manifest, Tuning, read_record, write_record
from fourminutes.train.precision import in_precision, settle_arithmetic
from fourminutes.train.ranks import Ranks

# The last size may take a little longer; a start stays below 20 s.
_AUTO_BUDGET_S = 14.0
_IMAGENET_CLASSES = 1000


def settled_reduce(
    settings: RunPlan, network: nn.Module, launch: Launch, topology: Topology, ranks: Ranks, kept: Path | None
) -> ReducePlan:
    """How a run's gradients are averaged, every choice made. To be called by all ranks.

    Args:
        settings: the run's.
        network: what is trained, before it is wrapped.
        launch: this process's place.
        topology: the processes and their groups.
        ranks: the processes.
        kept: file of a tuning made at a start of this run. A run that goes on takes it up again, since other choices
            would sum in another order; on other processes it is made anew. None keeps none.

    Raises:
        UserError: the plan's tuning cannot be read, or is for other processes or another number format; raised on all
            ranks.
    """
    reduce = settings.reduce
    if reduce.tuning is not None:
        return tuned(reduce, _given(reduce.tuning, reduce, topology, ranks))
    if reduce.algorithm != "auto":
        return reduce
    if ranks.world_size == 1:
        return reduce.model_copy(update={"algorithm": "ring"})
    tuning = ranks.first(_kept(kept, reduce, topology) if ranks.is_first else None)
    if tuning is None:
        tuning = _tune(
            network, settings, launch, topology, budget_s=_AUTO_BUDGET_S, about=About(group_ranks=reduce.group_ranks)
        )
        ranks.on_first(lambda: write_record(kept, tuning) if kept else None)
    return tuned(reduce, ranks.first(tuning))


def tune_run(plan: Plan, run: str, *, groups: Sequence[int], budget_s: float) -> Tuning | None:
    """Tune for the model of a run of `plan`, over the processes at hand; rank 0 gets what came of it, the others None.

    Where the plan's data set is not made yet, the network has ImageNet's 1,000 classes.

    Raises:
        UserError: the plan has no such run, or one process alone was started.
    """
    launch = require_several(resolve_launch())
    settings = plan.runs[run_of(plan, run)]
    torch.set_num_threads(settings.threads)
    settle_arithmetic()
    with process_group(launch):
        device = device_of(launch)
        classes = len(read_record(plan.manifest, Manifest).classes) if _is_made(plan) else _IMAGENET_CLASSES
        network = in_precision(build_model(settings.model, classes, seed=0).to(device), settings.precision, device)
        topology = discover(launch, settings.reduce.group_ranks)
        about = About(plan.name, run, settings.reduce.group_ranks)
        tuning = _tune(network, settings, launch, topology, groups=groups, budget_s=budget_s, about=about)
    return tuning if launch.is_first else None


def _is_made(plan: Plan) -> bool:
    return plan.data is not None and plan.manifest.is_file()


def _tune(
    network: nn.Module,
    settings: RunPlan,
    launch: Launch,
    own: Topology,
    *,
    budget_s: float,
    groups: Sequence[int] = (),
    about: About | None = None,
) -> Tuning:
    """Among the run's own groups and others; where the plan names their size, among those alone."""
    planned = [] if settings.reduce.group_ranks else group_sizes(own.world_size)
    side_px = settings.model.image_px
    return tune(
        launch,
        groupings_to_try(own, groups or planned),
        wire=settings.reduce.wire,
        budget_s=budget_s,
        own_group_ranks=own.group_ranks,
        ready=lambda: readiness_of(network, noise(settings.batch.per_device, side_px, device_of(launch))),
        about=about,
    )


def _given(path: Path, reduce: ReducePlan, topology: Topology, ranks: Ranks) -> Tuning:
    """The tuning that the plan names, read by rank 0 for all."""
    tuning = ranks.first(ranks.on_first(lambda: _fit_for(path, reduce, topology)))
    assert tuning is not None
    return tuning


def _fit_for(path: Path, reduce: ReducePlan, topology: Topology) -> Tuning:
    tuning = read_record(path, Tuning)
    made, here = _layout(tuning.placement.hosts), _layout(topology.hosts)
    if made != here:
        raise UserError(f"{path}: was tuned for {_told(made)}, not {_told(here)}; tune again with `comm tune`")
    if tuning.wire != reduce.wire:
        raise UserError(
            f"{path}: was tuned for {tuning.wire} on the wire, not {reduce.wire}; tune again, or change wire"
        )
    if tuning.group_ranks != reduce.group_ranks:
        now, then = (name or "null" for name in (reduce.group_ranks, tuning.group_ranks))
        raise UserError(f"{path}: was tuned with group_ranks {then}, not {now}; tune again, or change group_ranks")
    return tuning


def _layout(hosts: Sequence[str]) -> tuple[int, int]:
    """How many processes, and on how many hosts."""
    return len(hosts), len(set(hosts))


def _told(layout: tuple[int, int]) -> str:
    processes, hosts = layout
    return f"{processes} processes on {hosts} {'host' if hosts == 1 else 'hosts'}"


def _kept(path: Path | None, reduce: ReducePlan, topology: Topology) -> Tuning | None:
    """What was tuned at an earlier start in the same layout; None where there is nothing of use."""
    if path is None or not path.is_file():
        return None
    try:
        return _fit_for(path, reduce, topology)
    except UserError:  # made anew then; the run's record has a note that sums may differ
        return None


def black_pictures(settings: RunPlan, device: torch.device) -> Tensor:
    """A batch of black pictures as the run's network takes them: (per_device, 3, image_px, image_px), fp32."""
    side = settings.model.image_px
    zeros = torch.zeros(settings.batch.per_device, 3, side, side, device=device)
    return zeros.contiguous(memory_format=torch.channels_last)
