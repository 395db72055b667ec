"""What the ranks tell one another beside gradients: small things, on the CPU, over gloo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fourminutes.comm.launch import TIMEOUT_S, Launch
from fourminutes.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    The group is one of its own, so that what is said here never mixes with the order of the gradients' collectives,
    and never waits for a GPU. One process has no group, and every method then answers from itself.
    """

    rank: int
    world_size: int
    group: dist.ProcessGroup | None
    timeout_s: float = TIMEOUT_S

    @classmethod
    def of(cls, launch: Launch, *, timeout_s: float) -> Ranks:
        """The ranks of a launch, inside `process_group`; a rank that says nothing for `timeout_s` seconds is lost."""
        group = _gloo_group(timeout_s) if launch.world_size > 1 else None
        return cls(launch.rank, launch.world_size, group, timeout_s)

    def twin(self) -> Ranks:
        """The same ranks in another group, for another thread: in one group all would have to talk in one order.

        To be called by all ranks.
        """
        return replace(self, group=_gloo_group(self.timeout_s)) if self.group is not None else self

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks of `values` (any shape and dtype), on the CPU, the same bits on every rank."""
        total = values.detach().cpu().clone()
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in rank order, on every rank."""
        if self.group is None:
            return [value]
        values: list[Value] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, outcome: Value | UserError) -> list[Value]:
        """Every rank's outcome, in rank order, where all went well.

        Raises:
            UserError: it went wrong on some rank; the first one's, raised on all of them.
        """
        values: list[Value] = []
        for each in self.gather(outcome):
            if isinstance(each, UserError):
                raise each
            values.append(each)
        return values

    def on_first(self, act: Callable[[], Value]) -> Value | None:
        """What `act` returns on rank 0, which alone does it; None on the others.

        Raises:
            UserError: it went wrong; raised on all ranks.
        """
        if not self.is_first:
            self.agreed(None)
            return None
        try:
            value = act()
        except UserError as error:
            self.agreed(error)
            raise
        self.agreed(None)
        return value

    def first(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    @torch.no_grad()
    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor by its mean over all ranks."""
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.group is None or not floating:
            return
        flat = torch.cat([tensor.flatten().double() for tensor in floating])
        mean = self.sum(flat) / self.world_size
        for tensor, part in zip(floating, torch.split(mean, [tensor.numel() for tensor in floating]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _gloo_group(timeout_s: float) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return group
