"""Sums over all processes, in place, by arrangements of the library's collectives; each arrangement is its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from fourminutes.comm.topology import Topology
from fourminutes.errors import UserError
from fourminutes.plan import AlgorithmChoice, ReducePlan

Level = Literal["world", "within", "across"]

# torch 2.13 renamed both; the older names only warn there.
_native_reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True)
class Stage:
    """One collective of an arrangement, about to begin on this rank.

    Attributes:
        name: the collective.
        level: among whom: all ranks, a group, or the ranks at one place in every group.
        payload_bytes: what this rank hands over to it.
    """

    name: Literal["all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather"]
    level: Level
    payload_bytes: int

    def __str__(self) -> str:
        return f"{self.name}, {self.level}"


#: Sums a tensor in place; gives every stage before it begins, and the last one is over when the iterator ends. All
#: ranks have to go through alike. The tensor is contiguous, of any shape and floating type, the same on every rank.
Algorithm = Callable[[Tensor, Topology], Iterator[Stage]]


def ring(tensor: Tensor, topology: Topology) -> Iterator[Stage]:
    """The library's flat all-reduce."""
    if topology.world_size > 1:
        yield Stage("all_reduce", "world", tensor.nbytes)
        distributed.all_reduce(tensor, group=topology.world)


def hierarchical(tensor: Tensor, topology: Topology) -> Iterator[Stage]:
    """Reduce to each group's master, all-reduce among masters, broadcast: the arrangement of arXiv:1807.11205.

    With groups of k of p ranks and every stage as a ring it takes 4(k-1) + 2(p/k-1) steps (the paper's formula as
    remembered, unconfirmed) where the ring takes 2(p-1). Groups may be of unequal size.
    """
    if topology.within is not None:
        yield Stage("reduce", "within", tensor.nbytes)
        distributed.reduce(tensor, dst=topology.master, group=topology.within)
    if topology.across is not None and topology.rank == topology.master:
        yield Stage("all_reduce", "across", tensor.nbytes)
        distributed.all_reduce(tensor, group=topology.across)
    if topology.within is not None:
        yield Stage("broadcast", "within", tensor.nbytes)
        distributed.broadcast(tensor, src=topology.master, group=topology.within)


def torus(tensor: Tensor, topology: Topology) -> Iterator[Stage]:
    """Reduce-scatter in the group, all-reduce across, all-gather in the group.

    The two-dimensional arrangement of arXiv:1811.05233: every rank of a group sums another part across the groups.

    Raises:
        UserError: groups are of unequal size.
    """
    require_even(topology)
    if topology.within is None:
        yield from ring(tensor, topology)
        return
    whole = _padded(tensor.view(-1), topology.group_ranks)
    own = whole.new_empty(whole.numel() // topology.group_ranks)
    yield Stage("reduce_scatter", "within", whole.nbytes)
    _reduce_scatter(own, whole, group=topology.within)
    if topology.across is not None:
        yield Stage("all_reduce", "across", own.nbytes)
        distributed.all_reduce(own, group=topology.across)
    yield Stage("all_gather", "within", own.nbytes)
    _all_gather(whole, own, group=topology.within)
    if whole.data_ptr() != tensor.data_ptr():
        tensor.view(-1).copy_(whole[: tensor.numel()])


#: The arrangements.
ALGORITHMS: Mapping[str, Algorithm] = {"ring": ring, "hierarchical": hierarchical, "torus": torus}

#: Sums a tensor over the ranks that it was made for, as an `Algorithm` does.
Summation = Callable[[Tensor], Iterator[Stage]]


def summation(settings: ReducePlan, topology: Topology) -> Summation:
    """The arrangement that the settings name, or the one that they choose for each message's size.

    To be called by all ranks alike: groups of other sizes than the topology's get communicators of their own.

    Raises:
        UserError: it needs groups of one size, and these are not; or it is still to be tuned.
    """
    if settings.algorithm == "auto" or settings.tuning is not None:
        raise UserError("reduce: is to be tuned first; take what `fourminutes.comm.tuner.tuned` makes of it")
    if settings.algorithm != "hybrid":
        if settings.algorithm == "torus":
            require_even(topology)
        algorithm = ALGORITHMS[settings.algorithm]
        return lambda tensor: algorithm(tensor, topology)
    return hybrid(settings.choices, topology)


def hybrid(choices: Sequence[AlgorithmChoice], topology: Topology) -> Summation:
    """The arrangement that `choices` have for a message's size, as in arXiv:1807.11205: small ones by the hierarchy.

    To be called by all ranks alike.

    Args:
        choices: by rising size; the first whose limit the tensor's bytes do not pass is taken.
        topology: the processes; its groups are those of the choices that name no size of a group.

    Raises:
        UserError: a choice needs groups of one size, and they are not.
    """
    sizes = sorted({choice.group_ranks for choice in choices if choice.group_ranks is not None})
    grouped = {None: topology} | {size: topology.regrouped(size) for size in sizes}
    for choice in choices:
        if choice.algorithm == "torus":
            require_even(grouped[choice.group_ranks])

    def by_size(tensor: Tensor) -> Iterator[Stage]:
        choice = chosen(choices, tensor.nbytes)
        return ALGORITHMS[choice.algorithm](tensor, grouped[choice.group_ranks])

    return by_size


def chosen(choices: Sequence[AlgorithmChoice], message_bytes: int) -> AlgorithmChoice:
    """The choice for a message of so many bytes."""
    return next(choice for choice in choices if choice.holds(message_bytes))


def run(algorithm: Algorithm, tensor: Tensor, topology: Topology) -> None:
    """Replace `tensor` by its sum over all ranks."""
    for _ in algorithm(tensor, topology):
        pass


def require_even(topology: Topology) -> None:
    """Make sure that all groups are of one size, which the torus needs.

    Raises:
        UserError: they are not.
    """
    if not topology.is_even:
        sizes = ", ".join(str(len(group)) for group in topology.groups)
        raise UserError(f"torus: groups of {sizes} ranks are of unequal size; use hierarchical, or another group_ranks")


def _reduce_scatter(own: Tensor, whole: Tensor, group: ProcessGroup) -> None:
    """Set `own` to the sum over the group of this rank's part of `whole`.

    Over gloo torch's own form sends 2(k-1)/k of `whole`, as an all-reduce does. Here every rank sends every other one
    its part, (k-1)/k in all and in one step, and adds up what it gets.
    """
    if distributed.get_backend(group) != "gloo":
        _native_reduce_scatter(own, whole, group=group)
        return
    parts = torch.empty_like(whole)
    distributed.all_to_all_single(parts, whole, group=group)
    torch.sum(parts.view(-1, own.numel()), dim=0, out=own)


def _padded(flat: Tensor, multiple: int) -> Tensor:
    """`flat`, lengthened by zeros to a multiple of `multiple` elements."""
    missing = -flat.numel() % multiple
    return flat if missing == 0 else torch.nn.functional.pad(flat, (0, missing))
