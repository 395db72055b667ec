"""Steps of a network that computes nothing: gradients come when theirs would, and are really reduced.

What a simulation of steps is held against where there are no devices: the computing is waited for, so that processes on
one machine do not take it from one another, while buckets, threads and collectives are those of training.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse
from fourminutes.comm.hook import HybridState
from fourminutes.comm.topology import Topology
from fourminutes.comm.tuner import Readiness
from fourminutes.plan import ReducePlan


class _Come(torch.autograd.Function):
    """A parameter's place in the backward pass: waits for its moment, then sends a gradient of ones."""

    @staticmethod
    def forward(ctx: Any, carried: Tensor, weight: Tensor, clock: _Clock, ready_s: float) -> Tensor:
        ctx.clock, ctx.ready_s, ctx.shape = clock, ready_s, weight.shape
        return carried.clone()

    @staticmethod
    def backward(ctx: Any, *carried: Any) -> Any:
        ctx.clock.wait_until(ctx.ready_s)
        return carried[0], torch.ones(ctx.shape), None, None


class _Clock:
    """Time since the backward pass began."""

    def __init__(self) -> None:
        self._begin_s = 0.0

    def begin(self) -> None:
        self._begin_s = time.perf_counter()

    def wait_until(self, moment_s: float) -> None:
        # Asleep, so that the cores are the communication's.
        time.sleep(max(0.0, self._begin_s + moment_s - time.perf_counter()))


class Replayed(nn.Module):
    """A stand-in for a network: parameters of its sizes, whose gradients, ones, come at their moments.

    Args:
        readiness: sizes, in fp32 and in the network's order, and moments from the begin of the backward pass.
    """

    def __init__(self, readiness: Readiness) -> None:
        super().__init__()
        self.clock = _Clock()
        self._ready_s = readiness.ready_s
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(size // 4)) for size in readiness.tensor_bytes])

    def state_dict(self, *_arguments: Any, **_options: Any) -> Any:
        """Nothing: weights are never looked at, and take no memory while nobody writes to them."""
        return {}

    def forward(self, start: Tensor) -> Tensor:
        """A number without meaning; its backward pass goes through the parameters from the last to the first."""
        carried = start
        for weight, ready_s in zip(self.weights, self._ready_s, strict=True):
            carried = _Come.apply(carried, weight, self.clock, ready_s)  # type: ignore[no-untyped-call]
        return carried


def replay_steps(
    readiness: Readiness,
    reduce: ReducePlan,
    topology: Topology,
    *,
    forward_s: float,
    optimizer_s: float,
    repeats: int,
    warm_up: int = 1,
) -> list[float]:
    """Times of steps in seconds, each that of its slowest rank. Called by all ranks, which get the same.

    Args:
        readiness: the backward pass.
        reduce: arrangement, wire, lanes and fusion; buckets are exact whatever the front end.
        topology: the processes.
        forward_s: time of the forward pass, waited for.
        optimizer_s: time of the update, likewise.
        repeats: timed steps.
        warm_up: steps before them.
    """
    network = Replayed(readiness)
    state = HybridState(topology, reduce)
    fused = fuse(readiness.tensor_bytes, threshold_bytes=reduce.bucket_mib * 2**20, segments=reduce.segments)
    parallel = FlatParallel(network, state, fused)
    try:
        times = [_one_step(parallel, network, forward_s, optimizer_s) for _ in range(warm_up + repeats)]
    finally:
        state.close()
    return times[warm_up:]


def _one_step(parallel: nn.Module, network: Replayed, forward_s: float, optimizer_s: float) -> float:
    start = torch.zeros(1, requires_grad=True)
    distributed.barrier()
    begin_s = time.perf_counter()
    loss = parallel(start)
    time.sleep(forward_s)
    network.clock.begin()
    loss.backward()
    time.sleep(optimizer_s)
    slowest_s = torch.tensor([time.perf_counter() - begin_s], dtype=torch.float64)
    network.zero_grad(set_to_none=True)
    distributed.all_reduce(slowest_s, op=distributed.ReduceOp.MAX)
    return float(slowest_s)
