"""The number format on the wire: a bucket scaled and rounded to it, and back."""

from __future__ import annotations

import torch
from torch import Tensor

WIRE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Converted in pieces that stay in the cache, since torch's CPU kernels between two types go through new memory.
_PIECE_ELEMENTS = 2**17


def put_on_wire(buffer: Tensor, wire: Tensor, factor: float) -> None:
    """Set `wire` to `buffer` times `factor`: scaled in the wider type of the two, then rounded to the wire's.

    Both are flat and of one length; they may be the same tensor.
    """
    if wire is buffer:
        if factor != 1:
            wire.mul_(factor)
    elif buffer.is_cuda:
        torch.mul(buffer, factor, out=wire)  # one pass over the memory
    else:
        scaled = buffer.new_empty(min(_PIECE_ELEMENTS, buffer.numel()), dtype=_wider(buffer, wire))
        for piece, target in zip(torch.split(buffer, _PIECE_ELEMENTS), torch.split(wire, _PIECE_ELEMENTS), strict=True):
            target.copy_(scaled[: piece.numel()].copy_(piece).mul_(factor))


def take_off_wire(wire: Tensor, buffer: Tensor, divisor: float) -> None:
    """Set `buffer` to `wire` over `divisor`: divided in the wider type of the two, then rounded to the buffer's.

    Both are flat and of one length; they may be the same tensor. What another `wire` holds afterwards means nothing.
    """
    if wire is buffer:
        buffer.div_(divisor)
    elif wire.element_size() > buffer.element_size():
        buffer.copy_(wire.div_(divisor))
    elif buffer.is_cuda:
        # One pass over the memory. A divisor of one dimension has a say in the type of the division; a number has none.
        torch.div(wire, torch.full((1,), divisor, dtype=buffer.dtype, device=buffer.device), out=buffer)
    else:
        for part, target in zip(torch.split(wire, _PIECE_ELEMENTS), torch.split(buffer, _PIECE_ELEMENTS), strict=True):
            target.copy_(part).div_(divisor)


def _wider(one: Tensor, other: Tensor) -> torch.dtype:
    return one.dtype if one.element_size() >= other.element_size() else other.dtype
