"""When a model's gradients are ready, from the begin of the backward pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, distributed, nn

from fourminutes.comm.trace import Tracer
from fourminutes.comm.tuner import Readiness

_PASSES = 3  # timed ones, after one that warms up


def readiness_of(network: nn.Module, images: Tensor, passes: int = _PASSES) -> Readiness:
    """Time the gradients of `network` on `images`; of the processes, all of which call this, the slowest one counts.

    The passes are those of training: batch norm's backward is another one in evaluation, and on a GPU a slower one.
    Running statistics and the random state are as before afterwards; gradients are left None.

    Args:
        network: any model with one output.
        images: a batch of its input.
        passes: timed ones, of which the medians are taken; one before them warms up.
    """
    seen = moments_of(network, images, passes)
    medians = torch.tensor([statistics.median(times) for times in seen], dtype=torch.float64)
    if distributed.is_initialized():
        medians = medians.to(images.device)
        distributed.all_reduce(medians, op=distributed.ReduceOp.MAX)
    return Readiness(tuple(4 * weight.numel() for weight in _trained(network)), tuple(medians.tolist()))


def moments_of(network: nn.Module, images: Tensor, passes: int = _PASSES) -> list[tuple[float, ...]]:
    """Seconds from the begin of a backward pass to each gradient, in every pass of this process; as `readiness_of`.

    Returns:
        For each trained parameter, in the network's order, `passes` moments.
    """
    with as_in_training(network, images.device):
        seen = [_one_pass(network, _trained(network), images) for _ in range(1 + passes)][1:]
    return list(zip(*seen, strict=True))


@contextmanager
def as_in_training(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within this `network` runs as in training; its buffers, its mode and the random state are put back at the end."""
    modes = [(module, module.training) for module in network.modules()]
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


def noise(images: int, side_px: int, device: torch.device) -> Tensor:
    """A batch to time passes on: (images, 3, side_px, side_px), fp32, standard normal, always the same.

    Not zeros, on which a GPU is faster than on any picture.
    """
    drawn = torch.randn(images, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    return drawn.to(device).contiguous(memory_format=torch.channels_last)  # as the loader hands pictures over


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]


def _one_pass(network: nn.Module, weights: list[nn.Parameter], images: Tensor) -> list[float]:
    """Seconds from the begin of one backward pass to each gradient."""
    loss = network(images).float().sum()
    tracer = Tracer(images.device)
    for number in range(len(weights)):
        tracer.mark(number, "computing")  # all from the same moment on, but for some microseconds
    hooks = [
        weight.register_post_accumulate_grad_hook(partial(_mark, tracer, number))  # type: ignore[no-untyped-call]
        for number, weight in enumerate(weights)
    ]
    loss.backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    spans = {span.bucket: span.end_s - span.start_s for span in tracer.spans()}
    # A parameter that takes no part has its gradient, zero, when all the others have theirs.
    return [spans.get(number, max(spans.values())) for number in range(len(weights))]


def _mark(tracer: Tracer, number: int, _weight: Tensor) -> None:
    tracer.mark(number, "")
