"""That all ranks train the same thing: found out before they would wait for one another in vain, and as they go."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from fourminutes.errors import RunFailed, UserError
from fourminutes.train.ranks import Ranks

_Value = TypeVar("_Value", bound=Hashable)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def require_agreement(ranks: Ranks, hosts: Sequence[str], facts: Mapping[str, str]) -> None:
    """Make sure that the ranks have the same facts. To be called by all of them, with the same names of facts.

    Args:
        ranks: all of them.
        hosts: host of every rank.
        facts: what has to be the same, in words.

    Raises:
        UserError: a rank has others than most; raised on all ranks.
    """
    everyones = ranks.gather(dict(facts))
    for name in facts:
        values = [own[name] for own in everyones]
        if odd := _odd(values):
            (rank, value), usual = odd[0], _usual(values)
            raise UserError(
                f"rank {rank} on {hosts[rank]}: its {name} is {value}, that of most ranks {usual}; "
                "start all ranks with the same plan, data and version"
            )


def network_in_words(model: nn.Module) -> str:
    """What tells a network from others: its tensors, their names, shapes and types."""
    tensors = list(model.named_parameters())
    listed = "\n".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    return f"{digest} ({len(tensors)} tensors, {sum(tensor.numel() for _, tensor in tensors):,} weights)"


def require_no_drift(ranks: Ranks, hosts: Sequence[str], model: nn.Module, step: int) -> None:
    """Make sure that all ranks have the same weights, bit for bit, after `step`. To be called by all of them.

    Raises:
        RunFailed: a rank has others than most; raised on all ranks.
    """
    names, weights = zip(*model.named_parameters(), strict=True)
    everyones = ranks.gather(tuple(checksums(weights).tolist()))
    if odd := _odd(everyones):
        (rank, own), usual = odd[0], _usual(everyones)
        first = next(name for name, one, other in zip(names, own, usual, strict=True) if one != other)
        raise RunFailed(
            f"rank {rank} on {hosts[rank]} has drifted: after step {step} its {first} is not that of most ranks; look "
            "at that host's memory and driver, and start again: the run goes on from its last checkpoint"
        )


def checksums(tensors: Sequence[Tensor]) -> Tensor:
    """One number a tensor, int64 of shape (tensors,): the sum of its elements' bits, taken as integers, modulo 2⁶⁴."""
    return torch.stack([_bits(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors]).cpu()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()])


def _odd(values: Sequence[_Value]) -> list[tuple[int, _Value]]:
    """The ranks, with their values, that have another value than most."""
    usual = _usual(values)
    return [(rank, value) for rank, value in enumerate(values) if value != usual]


def _usual(values: Sequence[_Value]) -> _Value:
    """What most have; of several, the one that a lower rank has."""
    return Counter(values).most_common(1)[0][0]
