"""Copies of a state in the CPU's memory, which the training may change or write beside from then on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Exactly these types: a subclass may need code to be read again.
_PLAIN = (type(None), bool, int, float, str, bytes)


class Snapshots:
    """Takes one copy after another into the same memory, since new memory costs several times the copying."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state` that shares nothing with it, complete on return, good until the next is taken.

        Tensors keep dtype and shape. A view is copied as what it shows, without the rest of its storage.

        Raises:
            TypeError: something in it is neither tensor, number, text, bytes, None, dict, list nor tuple.
        """
        before, self._memory = self._memory, []
        copied: dict[str, Any] = self._copied(state, iter(before))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()
        return copied

    def _copied(self, value: Any, before: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            self._memory.append(_copied_tensor(value.detach(), next(before, None)))
            return self._memory[-1]
        if isinstance(value, dict):
            return {key: self._copied(each, before) for key, each in value.items()}
        if isinstance(value, list):
            return [self._copied(each, before) for each in value]
        if isinstance(value, tuple):
            return tuple(self._copied(each, before) for each in value)
        if type(value) in _PLAIN:
            return value
        raise TypeError(f"checkpoint: {type(value).__name__} is no plain value, and would not be read again")


def _copied_tensor(tensor: Tensor, memory: Tensor | None) -> Tensor:
    """A copy of `tensor`, in `memory` where that is of the same form; page-locked, as fast as the bus, for a GPU's."""
    if memory is None or (memory.shape, memory.stride(), memory.dtype) != (tensor.shape, tensor.stride(), tensor.dtype):
        memory = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return memory.copy_(tensor, non_blocking=True)
