"""Which ranks share a host, how ranks are grouped, and the communicators within and across the groups."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from fourminutes.comm.group import device_of
from fourminutes.comm.launch import TIMEOUT_S, Launch
from fourminutes.record import Placement

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """The processes, their hosts and groups, and this rank's communicators.

    Attributes:
        rank: this process.
        hosts: host of every rank, in rank order.
        groups: the ranks of every group; a group's first rank is its master.
        within: this rank's group; None where it is a group of one.
        across: the ranks at this rank's place in every group, so the masters for a master; None where there is one
            group only, and, for ranks that are no masters, where groups are of unequal size.
        world: all ranks; None where there is one only.
        timeout_s: how long a collective waits for the others, in seconds.
    """

    rank: int
    hosts: tuple[str, ...]
    groups: Groups
    within: ProcessGroup | None
    across: ProcessGroup | None
    world: ProcessGroup | None = None
    timeout_s: float = TIMEOUT_S

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return len(self.hosts)

    @property
    def group(self) -> tuple[int, ...]:
        """This rank's group."""
        return next(group for group in self.groups if self.rank in group)

    @property
    def master(self) -> int:
        """The master of this rank's group."""
        return self.group[0]

    @property
    def masters(self) -> tuple[int, ...]:
        """The first rank of every group."""
        return tuple(group[0] for group in self.groups)

    @property
    def group_ranks(self) -> int:
        """Size of the largest group."""
        return max(len(group) for group in self.groups)

    @property
    def is_even(self) -> bool:
        """Whether all groups are of one size."""
        return _are_even(self.groups)

    def twin(self) -> Topology:
        """The same groups with communicators of their own, for sums that run beside others. Called by all ranks."""
        return connect(self.rank, self.hosts, self.groups, self.timeout_s)

    def regrouped(self, group_ranks: int) -> Topology:
        """The same ranks in groups of so many, with communicators of their own. Called by all ranks."""
        groups = group_consecutive(self.world_size, group_ranks)
        return connect(self.rank, self.hosts, groups, self.timeout_s)


def discover(launch: Launch, group_ranks: int | None = None, *, timeout_s: float = TIMEOUT_S) -> Topology:
    """Find out where all ranks are, group them, and build the communicators, in the same order on every rank.

    Called by all ranks, inside `process_group`; a process alone needs no process group.

    Args:
        launch: this process's place.
        group_ranks: ranks a group, counted in rank order, the last group taking the remainder; None groups by host.
        timeout_s: how long a collective within a group or across waits for the others, in seconds; `process_group`'s.
    """
    hosts = _gather_hosts(launch)
    groups = group_by_host(hosts) if group_ranks is None else group_consecutive(len(hosts), group_ranks)
    return connect(launch.rank, hosts, groups, timeout_s)


def group_by_host(hosts: Sequence[str]) -> Groups:
    """Ranks that share a host, for every host in order of its first rank."""
    return tuple(
        tuple(rank for rank, other in enumerate(hosts) if other == host) for host in dict.fromkeys(hosts)
    )  # ranks of one host need not be consecutive: Slurm may deal them out in turn


def group_consecutive(world_size: int, group_ranks: int) -> Groups:
    """Consecutive ranks, `group_ranks` a group; the last group takes the remainder."""
    starts = range(0, world_size, group_ranks)
    return tuple(tuple(range(start, min(start + group_ranks, world_size))) for start in starts)


def placement(launch: Launch, topology: Topology) -> Placement:
    """Where the processes run, for a record."""
    device = device_of(launch)
    return Placement(
        launcher=launch.launcher,
        hosts=topology.hosts,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        backend=distributed.get_backend() if topology.world_size > 1 else None,
    )


def _gather_hosts(launch: Launch) -> tuple[str, ...]:
    hosts = [platform.node()] * launch.world_size
    if launch.world_size > 1:
        distributed.all_gather_object(hosts, platform.node())
    return tuple(hosts)


def connect(rank: int, hosts: tuple[str, ...], groups: Groups, timeout_s: float) -> Topology:
    """Build the communicators of these groups, in one order on all ranks, which all call this.

    Args:
        rank: this process.
        hosts: host of every rank.
        groups: the ranks of every group.
        timeout_s: how long a collective waits for the others, in seconds.
    """
    within = _join(groups, rank, timeout_s)
    across = _join(_columns(groups), rank, timeout_s)
    world = _join((tuple(range(len(hosts))),), rank, timeout_s)
    return Topology(rank, hosts, groups, within, across, world, timeout_s)


def _columns(groups: Groups) -> Groups:
    """The ranks at the same place in every group; where sizes differ, only the masters, who exist in all."""
    return tuple(zip(*groups, strict=True)) if _are_even(groups) else (tuple(group[0] for group in groups),)


def _are_even(groups: Groups) -> bool:
    return len({len(group) for group in groups}) == 1


def _join(groups: Groups, rank: int, timeout_s: float) -> ProcessGroup | None:
    """Build a communicator for every group of more than one rank; the one that `rank` is in, or None."""
    own = None
    for group in groups:
        if len(group) > 1:
            # Every rank has to take part in building every communicator, its own or not.
            built = distributed.new_group(list(group), timeout=timedelta(seconds=timeout_s))
            own = built if rank in group else own
    return own
