"""Sums over all processes, in place and blocking, by three arrangements of the library's collectives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

from fourminutes.comm.topology import Topology
from fourminutes.errors import UserError

Collective = Callable[[Tensor, Topology], None]

# torch 2.13 renamed both; the older names only warn there.
_reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


def ring(tensor: Tensor, topology: Topology) -> None:
    """Replace `tensor` by its sum over all ranks: the library's flat all-reduce.

    Args:
        tensor: contiguous, of any shape and floating type; the same shape and type on every rank.
        topology: the processes.
    """
    if topology.world_size > 1:
        distributed.all_reduce(tensor)


def hierarchical(tensor: Tensor, topology: Topology) -> None:
    """Replace `tensor` by its sum over all ranks: reduce to each group's master, all-reduce among masters, broadcast.

    The arrangement of arXiv:1807.11205. With groups of k of p ranks and every stage as a ring it takes
    4(k-1) + 2(p/k-1) steps (the paper's formula as remembered, unconfirmed) where the ring takes 2(p-1). Groups may be
    of unequal size.

    Args:
        tensor: contiguous, of any shape and floating type; the same shape and type on every rank.
        topology: the processes and their groups.
    """
    if topology.within is not None:
        distributed.reduce(tensor, dst=topology.master, group=topology.within)
    if topology.across is not None and topology.rank == topology.master:
        distributed.all_reduce(tensor, group=topology.across)
    if topology.within is not None:
        distributed.broadcast(tensor, src=topology.master, group=topology.within)


def torus(tensor: Tensor, topology: Topology) -> None:
    """Replace `tensor` by its sum over all ranks: reduce-scatter in the group, all-reduce across, all-gather.

    The two-dimensional arrangement of arXiv:1811.05233: every rank of a group sums another part across the groups.

    Args:
        tensor: contiguous, of any shape and floating type; the same shape and type on every rank.
        topology: the processes and their groups, all of one size.

    Raises:
        UserError: groups are of unequal size.
    """
    if not topology.is_even:
        sizes = ", ".join(str(len(group)) for group in topology.groups)
        raise UserError(f"torus: groups of {sizes} ranks are of unequal size; use hierarchical, or another group_ranks")
    if topology.within is None:
        ring(tensor, topology)
        return
    whole = _padded(tensor.view(-1), topology.group_ranks)
    own = whole.new_empty(whole.numel() // topology.group_ranks)
    _reduce_scatter(own, whole, group=topology.within)
    if topology.across is not None:
        distributed.all_reduce(own, group=topology.across)
    _all_gather(whole, own, group=topology.within)
    tensor.view(-1).copy_(whole[: tensor.numel()])


def _padded(flat: Tensor, multiple: int) -> Tensor:
    """`flat`, lengthened by zeros to a multiple of `multiple` elements."""
    missing = -flat.numel() % multiple
    return flat if missing == 0 else torch.nn.functional.pad(flat, (0, missing))


ALGORITHMS: dict[str, Collective] = {"ring": ring, "hierarchical": hierarchical, "torus": torus}
