"""The number format on the wire: a bucket scaled and rounded to it, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

WIRE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# On a CPU what mixes two types goes through memory as large as the operands: in pieces it stays in the cache.
_PIECE_ELEMENTS = 2**17


def put_on_wire(buffer: Tensor, wire: Tensor, factor: float) -> None:
    """Set `wire` to `buffer` times `factor`: scaled in the wider type of the two, then rounded to the wire's.

    Both are flat and of one length; they may be the same tensor.
    """
    if wire is buffer:
        if factor != 1:
            wire.mul_(factor)
        return
    for piece, target in _pieces(buffer, wire):
        torch.mul(piece, factor, out=target)


def take_off_wire(wire: Tensor, buffer: Tensor, divisor: float) -> None:
    """Set `buffer` to `wire` over `divisor`: divided in the wider type of the two, then rounded to the buffer's.

    Both are flat and of one length; they may be the same tensor. What another `wire` holds afterwards means nothing.
    """
    if wire is buffer:
        _divide(buffer, divisor)
    elif wire.element_size() > buffer.element_size():
        buffer.copy_(wire.div_(divisor))
    elif buffer.is_cuda:
        # One pass over the memory. A divisor of one dimension has a say in the type of the division; a number has none.
        torch.div(wire, torch.full((1,), divisor, dtype=buffer.dtype, device=buffer.device), out=buffer)
    else:
        for target, piece in _pieces(buffer, wire):
            _divide(target.copy_(piece), divisor)


def _divide(tensor: Tensor, divisor: float) -> None:
    """In place; a power of two is multiplied by its inverse, which gives the same bits in less time."""
    mantissa, _ = math.frexp(divisor)
    if mantissa == 0.5:
        tensor.mul_(1 / divisor)
    else:
        tensor.div_(divisor)


def _pieces(buffer: Tensor, wire: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The two side by side: whole on a GPU, where one pass over the memory is the fastest."""
    elements = max(1, buffer.numel()) if buffer.is_cuda else _PIECE_ELEMENTS
    return zip(torch.split(buffer, elements), torch.split(wire, elements), strict=True)
