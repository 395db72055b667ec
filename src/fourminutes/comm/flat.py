"""The other front end of the all-reduce: gradient hooks over static flat buffers, fused exactly as asked for.

DistributedDataParallel's buckets are about as large as asked for, the first one smaller, and move after the first step.
Here they are what `fusion.fuse` says from the first step on, and stay where they are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fourminutes.comm.fusion import Fused
from fourminutes.comm.hook import HybridState
from fourminutes.comm.lanes import TensorFuture


class FlatParallel(nn.Module):
    """Averages a module's gradients over all ranks while the backward pass runs, as DistributedDataParallel does.

    Before a bucket is averaged its gradients are packed into its flat buffer, of the parameters' dtype, and are views
    into it from then on: micro-batches add up there, and a gradient that is zeroed in place is never packed again. A
    bucket is handed to `state` once its last gradient is ready and all buckets before it are handed over; so the order
    is the same on all ranks whatever the order of readiness. When the backward pass returns, all are averaged.
    Parameters that took no part have the gradient zero.

    To be made by all ranks alike: rank 0's parameters and buffers are taken over by the others.

    Args:
        module: what is trained.
        state: processes, arrangement and wire; of its own for each module.
        fused: the buckets, by numbers of the parameters that are trained, in the module's order.
    """

    def __init__(self, module: nn.Module, state: HybridState, fused: Fused) -> None:
        super().__init__()
        self.module = module
        self._state = state
        self._averages, self._under_way = True, False
        self._handed_over: list[TensorFuture] = []
        _take_over_from_first(module)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._buckets = [_Bucket([parameters[number] for number in numbers]) for numbers in fused]
        for number, bucket in enumerate(self._buckets):
            state.note(number, bucket.flat.numel())
            for parameter in bucket.parameters:
                hook = partial(self._ready, bucket)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within this, gradients accumulate on each rank alone."""
        self._averages = False
        try:
            yield
        finally:
            self._averages = True

    def _ready(self, bucket: _Bucket, _parameter: Tensor) -> None:
        """The gradient of one of the bucket's parameters is there."""
        if not self._averages:
            return
        if not self._under_way:
            self._under_way = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        bucket.missing -= 1
        while self._next is not None and self._next.missing == 0:
            self._hand_over(self._next)

    @property
    def _next(self) -> _Bucket | None:
        """The first bucket that is not handed over."""
        done = len(self._handed_over)
        return self._buckets[done] if done < len(self._buckets) else None

    def _hand_over(self, bucket: _Bucket) -> None:
        bucket.pack()
        number, is_last = len(self._handed_over), bucket is self._buckets[-1]
        self._handed_over.append(self._state.submit(number, bucket.flat, is_last=is_last))

    def _finish(self) -> None:
        """The backward pass is over: hand over what took no part in it, and wait for all averages."""
        while self._next is not None:
            self._hand_over(self._next)
        for future in self._handed_over:
            future.wait()
        self._handed_over.clear()
        self._under_way = False
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)


class _Bucket:
    """Parameters whose gradients lie in one flat buffer."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)
        first = parameters[0]
        self.flat = torch.zeros(sum(one.numel() for one in parameters), dtype=first.dtype, device=first.device)
        parts = torch.split(self.flat, [parameter.numel() for parameter in parameters])
        self._views = [_like(part, parameter) for part, parameter in zip(parts, parameters, strict=True)]

    def pack(self) -> None:
        """Have all gradients lie in the buffer, by one pass over those that don't yet; one that is missing is zero."""
        pairs = list(zip(self.parameters, self._views, strict=True))
        if absent := [view for parameter, view in pairs if parameter.grad is None]:
            torch._foreach_zero_(absent)
        elsewhere = [
            (view, parameter.grad)
            for parameter, view in pairs
            if parameter.grad is not None and parameter.grad.data_ptr() != view.data_ptr()
        ]
        if elsewhere:
            views, gradients = zip(*elsewhere, strict=True)
            torch._foreach_copy_(views, gradients)
        for parameter, view in pairs:
            parameter.grad = view


def _like(part: Tensor, parameter: Tensor) -> Tensor:
    """`part` in the parameter's shape and memory order, as autograd wants a gradient."""
    return part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())


def _take_over_from_first(module: nn.Module) -> None:
    if distributed.is_initialized():
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)
