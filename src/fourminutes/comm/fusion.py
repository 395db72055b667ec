"""Which gradients travel together: tensors fused up to a size, or in segments. No torch.

Tensors are taken in backward order, the last one of the model first, since in that order their gradients become ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fourminutes.plan import ReducePlan

#: Numbers of tensors, in the model's order from 0, that are fused; the buckets in the order of their reduction.
Fused = tuple[tuple[int, ...], ...]


def fuse(tensor_bytes: Sequence[int], *, threshold_bytes: float, segments: Sequence[int] = ()) -> Fused:
    """The buckets of a model, by segments where there are any, else by size.

    Args:
        tensor_bytes: size of every gradient, in the model's order.
        threshold_bytes: see `fuse_by_size`.
        segments: see `fuse_by_segments`.

    Raises:
        ValueError: a segment begins beyond the tensors.
    """
    if segments:
        return fuse_by_segments(len(tensor_bytes), segments)
    return fuse_by_size(tensor_bytes, threshold_bytes)


def fuse_by_size(tensor_bytes: Sequence[int], threshold_bytes: float) -> Fused:
    """Neighbours together, as long as all of them are at most θ = `threshold_bytes`; a larger tensor goes alone.

    The threshold form of arXiv:1807.11205, which doesn't fuse tensors beyond θ either.
    """
    buckets: list[list[int]] = []
    filled_bytes = 0
    for number in reversed(range(len(tensor_bytes))):
        if not buckets or filled_bytes + tensor_bytes[number] > threshold_bytes:
            buckets.append([])
            filled_bytes = 0
        buckets[-1].append(number)
        filled_bytes += tensor_bytes[number]
    return tuple(map(tuple, buckets))


def fuse_by_segments(tensors: int, starts: Sequence[int]) -> Fused:
    """One bucket a segment: from the model's first tensor to before `starts[0]`, from there to before the next, ...

    The segmented form of arXiv:1807.11205 at 1,024 GPUs has two: AlexNet-BN's 26 tensors split at 20, between
    convolutions and fully connected layers, and ResNet-50's 161 at 76.

    Raises:
        ValueError: a start is not within 1 ... `tensors` - 1, or they don't rise.
    """
    if list(starts) != sorted(set(starts)) or not all(0 < start < tensors for start in starts):
        within = f"lie within 1 and {tensors - 1}, for {tensors} tensors"
        raise ValueError(f"segments {list(starts)}: must rise and {within}")
    edges = [0, *starts, tensors]
    runs = [range(begin, end) for begin, end in pairwise(edges)]
    return tuple(tuple(reversed(run)) for run in reversed(runs))


def buckets_of(tensor_bytes: Sequence[int], reduce: ReducePlan) -> Fused:
    """The tensors that travel together: up to `bucket_mib`, or in segments."""
    return fuse(tensor_bytes, threshold_bytes=reduce.bucket_mib * 2**20, segments=reduce.segments)
