"""Timing arrangements of the all-reduce against one another, as wholes and by their stages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from fourminutes.comm.calls import Calls, StageCalls
from fourminutes.comm.collectives import ALGORITHMS, Stage
from fourminutes.comm.topology import Topology
from fourminutes.comm.trace import Tracer
from fourminutes.comm.whereabouts import HERE
from fourminutes.comm.wire import WIRE_DTYPES
from fourminutes.plan import Wire


@dataclass(frozen=True)
class Arrangement:
    """An algorithm over groups, with a number format on the wire."""

    algorithm: str
    topology: Topology
    wire: Wire

    @property
    def group_ranks(self) -> int:
        """Processes a group; all of them where the algorithm has no groups."""
        return self.topology.world_size if self.algorithm == "ring" else self.topology.group_ranks

    def stages(self, tensor: Tensor) -> Iterator[Stage]:
        """Sum `tensor` over all ranks, a stage after the other."""
        return ALGORITHMS[self.algorithm](tensor, self.topology)


def arrangements(algorithms: Sequence[str], topologies: Sequence[Topology], wires: Sequence[Wire]) -> list[Arrangement]:
    """Every algorithm over every grouping in every number format, but for what does not exist or would come twice."""
    return [
        Arrangement(algorithm, topology, wire)
        for wire in dict.fromkeys(wires)
        for number, topology in enumerate(topologies)
        for algorithm in algorithms
        if (topology.is_even or algorithm != "torus") and (number == 0 or algorithm != "ring")
    ]


@dataclass(frozen=True)
class _Call:
    """What one rank saw of one call, or of the mean one of a row.

    That is its time, and when each of its stages ended, in seconds from the call's start.
    """

    total_s: float
    ends_s: dict[str, float]
    payload_bytes: dict[str, int]


def time_calls(
    items: Sequence[Arrangement],
    message_bytes: int,
    device: torch.device,
    *,
    repeats: int,
    warm_up: int = 0,
    in_a_row: int = 1,
) -> list[Calls]:
    """Time `repeats` calls of every arrangement at one size, in turns, so that a disturbance hits all of them alike.

    To be called by all ranks, inside `process_group`; all get the same answer.

    Args:
        items: the arrangements.
        message_bytes: on the wire, a multiple of four; of zeros, which any number of sums leaves as they are.
        device: where the message lies.
        repeats: timed calls of each.
        warm_up: calls of each before them that are not timed.
        in_a_row: calls that follow one another without all ranks meeting in between, each time; their mean is one
            timed call. In a row, being late for one call is made up for in the next, as it is in a step of training.
    """
    tensors = {wire: _message(message_bytes, wire, device) for wire in {item.wire for item in items}}
    seen: list[list[_Call]] = [[] for _ in items]
    for call, (item, calls) in itertools.product(range(warm_up + repeats), zip(items, seen, strict=True)):
        one = _timed(item, tensors[item.wire], device, in_a_row)
        if call >= warm_up:
            calls.append(one)
    everyones: list[list[list[_Call]]] = [seen] * distributed.get_world_size()
    distributed.all_gather_object(everyones, seen)
    return [_calls_of(item, message_bytes, [own[number] for own in everyones]) for number, item in enumerate(items)]


def _message(message_bytes: int, wire: Wire, device: torch.device) -> Tensor:
    dtype = WIRE_DTYPES[wire]
    return torch.zeros(message_bytes // dtype.itemsize, dtype=dtype, device=device)


def _timed(item: Arrangement, tensor: Tensor, device: torch.device, in_a_row: int) -> _Call:
    """A row of calls, the first of which all ranks enter together; the mean of them."""
    HERE.begin(f"{item.algorithm} of {tensor.nbytes / 1024:g} KiB")
    _settle(device)
    distributed.barrier()
    _settle(device)
    tracer, payload_bytes = Tracer(device), {}
    start_s = time.perf_counter()
    for _ in range(in_a_row):
        for stage in item.stages(tensor):
            payload_bytes[str(stage)] = stage.payload_bytes
            tracer.mark(0, str(stage))
    tracer.mark(0, "")
    _settle(device)
    total_s = (time.perf_counter() - start_s) / in_a_row
    lasted_s = dict.fromkeys(payload_bytes, 0.0)
    for span in tracer.spans():
        lasted_s[span.name] += (span.end_s - span.start_s) / in_a_row
    ends_s = dict(zip(lasted_s, itertools.accumulate(lasted_s.values()), strict=True))
    return _Call(total_s, ends_s, payload_bytes)


def _settle(device: torch.device) -> None:
    """Wait for the device; the CPU's collectives are done when they return."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _calls_of(item: Arrangement, message_bytes: int, by_rank: Sequence[Sequence[_Call]]) -> Calls:
    """The slowest rank decides when a call, or a stage of it, is over.

    The master of a group of several takes part in all stages; of one rank that has most of them the list is. A stage's
    own time is what it adds to the ends of those before it, which a late rank may have pushed beyond its own.
    """
    by_call = list(zip(*by_rank, strict=True))
    payload_bytes = max((calls[0].payload_bytes for calls in by_rank), key=len)
    stages, before_s = [], [0.0] * len(by_call)
    for stage, payload in payload_bytes.items():
        after_s = [
            max(before, *(rank.ends_s.get(stage, 0.0) for rank in ranks))
            for before, ranks in zip(before_s, by_call, strict=True)
        ]
        own_s = tuple(after - before for after, before in zip(after_s, before_s, strict=True))
        stages.append(StageCalls(stage, payload, own_s))
        before_s = after_s
    return Calls(
        algorithm=item.algorithm,
        group_ranks=item.group_ranks,
        wire=item.wire,
        message_bytes=message_bytes,
        seconds=tuple(max(rank.total_s for rank in ranks) for ranks in by_call),
        stages=tuple(stages),
    )
