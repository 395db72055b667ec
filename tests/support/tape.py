"""A recorder for the CPU that behaves as a CUDA graph does: what is repeated are operations on fixed tensors.

Numbers of Python are frozen as they were when it was recorded, a look at a tensor's value is refused, and recording
itself changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LOOKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}


class Tape:
    """Records operations and repeats them; a `Recorder`."""

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        recording = _Recording()
        with torch.random.fork_rng([]), recording:
            work()
        recording.undo()
        return recording.repeat


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._found: dict[int, tuple[Tensor, Tensor]] = {}  # what was there before, and a copy of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKS:
            raise AssertionError(f"{func}: waits for the device, which a recording cannot do")
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._made and id(tensor) not in self._found:
                self._found[id(tensor)] = (tensor, tensor.clone())
        result = func(*args, **(kwargs or {}))
        self._made |= {id(tensor) for tensor in _tensors(result)} - self._found.keys()
        self._calls.append((func, args, kwargs or {}, result))  # which also keeps them all, and so their ids
        return result

    def undo(self) -> None:
        for tensor, before in self._found.values():
            tensor.data.copy_(before)  # unseen by autograd, which would take it for a change of what it saved

    @torch.no_grad()
    def repeat(self) -> None:
        for func, args, kwargs, result in self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
