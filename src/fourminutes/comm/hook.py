"""A communication hook for DistributedDataParallel: averages buckets by the arrangement that suits them.

With any DDP model::

    state = HybridState(discover(resolve_launch()), ReducePlan(algorithm="hierarchical", wire="fp16"))
    ddp.register_comm_hook(state, hybrid_hook)

Buckets are summed in the order in which DDP hands them over, which is the same on all ranks: on a GPU on one stream,
on the CPU in a few lanes, each a thread with communicators of its own, among which buckets are dealt out by their
numbers. So the stages of two buckets never cross, nothing can deadlock, and the same gradients give the same bits
from run to run. While buckets are summed, the backward pass goes on.
"""

# No `from __future__ import annotations` here: DDP compares the hook's annotations with the types themselves.

import math

import torch
from torch import Tensor, distributed

from fourminutes.comm.collectives import summation
from fourminutes.comm.lanes import Lane, StreamLane, TensorFuture, ThreadLanes
from fourminutes.comm.topology import Topology
from fourminutes.comm.trace import QUEUED, Tracer
from fourminutes.comm.whereabouts import HERE
from fourminutes.comm.wire import WIRE_DTYPES, put_on_wire, take_off_wire
from fourminutes.plan import ReducePlan


def predivisor(world_size: int) -> int:
    """The power of two nearest above sqrt(world_size), by which gradients are divided before a half-precision wire.

    Sums of P like terms grow by up to P, those of P independent terms by sqrt(P). Dividing by all of P first would
    flush small gradients to zero, dividing only afterwards would overflow; at the square root the sum has the headroom
    of a factor sqrt(P) on both sides. A power of two leaves the mantissa as it is.
    """
    return 1 << math.ceil(math.log2(world_size) / 2)


def _is_nccl() -> bool:
    return distributed.is_initialized() and distributed.get_backend() == "nccl"


class HybridState:
    """What `hybrid_hook` needs: the processes, how to reduce, and the lanes that buckets queue in.

    To be made by all ranks alike, since communicators are built.

    Args:
        topology: the processes and their groups.
        settings: algorithm, lanes, and number format on the wire; the bucket size is DDP's own argument
            `bucket_cap_mb`.

    Raises:
        UserError: the algorithm needs groups of one size, and these are not.
    """

    def __init__(self, topology: Topology, settings: ReducePlan) -> None:
        self.topology = topology
        self.settings = settings
        lanes = 1 if _is_nccl() else settings.lanes  # one stream on a GPU
        twins = [topology.twin() for _ in range(lanes - 1)]
        self._summations = [summation(settings, own) for own in (topology, *twins)]
        self._lane: Lane | None = None
        self._sizes: dict[int, int] = {}
        self._buckets = 0  # of the backward pass before, since DDP hands them over one by one
        self._wires: dict[int, Tensor] = {}
        self._tracer: Tracer | None = None

    @property
    def layout(self) -> list[int]:
        """Elements of every bucket of the last backward pass, in the order of their reduction."""
        return [self._sizes[number] for number in sorted(self._sizes)]

    def note(self, number: int, elements: int) -> None:
        """Bucket `number` of this backward pass has so many `elements`."""
        if number == 0:
            self._buckets = len(self._sizes)
            self._sizes.clear()
        self._sizes[number] = elements

    def average(self, number: int, buffer: Tensor) -> Tensor:
        """Replace bucket `number`, flat, fp32 or half, by its mean over all ranks, and return it.

        With wire type w, P ranks, and c = `predivisor(P)` for a half-precision wire, else 1:
        mean = sum over ranks of w(x / c), in w, divided by P / c in the wider of w and the buffer's type.
        """
        wire_dtype = WIRE_DTYPES[self.settings.wire]
        self._mark(number, "cast to the wire")
        before = 1 if wire_dtype == torch.float32 else predivisor(self.topology.world_size)
        wire = buffer if buffer.dtype == wire_dtype else self._wire_of(number, buffer, wire_dtype)
        put_on_wire(buffer, wire, 1 / before)
        for stage in self._summations[number % len(self._summations)](wire):
            self._mark(number, str(stage))
        self._mark(number, "divide")
        take_off_wire(wire, buffer, self.topology.world_size / before)
        self._mark(number, "")
        return buffer

    def _wire_of(self, number: int, buffer: Tensor, dtype: torch.dtype) -> Tensor:
        """Where bucket `number` lies as it goes over the wire; kept, since new memory costs as much as the cast."""
        kept = self._wires.get(number)
        if kept is None or (kept.shape, kept.dtype, kept.device) != (buffer.shape, dtype, buffer.device):
            kept = self._wires[number] = torch.empty_like(buffer, dtype=dtype)
        return kept

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """Queue bucket `number`; the future delivers it averaged. `is_last` marks the last one of a backward pass."""
        if self._lane is None:  # where buckets lie is known by the first
            lanes = len(self._summations)
            self._lane = StreamLane(self.average) if buffer.is_cuda else ThreadLanes(self.average, lanes)
        self._mark(number, QUEUED)
        return self._lane.submit(number, buffer, is_last=is_last)

    def trace(self, device: torch.device) -> Tracer:
        """Have every bucket's way traced from now on, until `end_trace`."""
        self._tracer = Tracer(device)
        return self._tracer

    def end_trace(self) -> None:
        """Trace no more."""
        self._tracer = None

    def take_exposed_s(self) -> float:
        """Communication that no computing hid since the last call, in seconds; asked for after a backward pass.

        For every backward pass: from the moment its last bucket was handed over, when no gradient is left to compute,
        to the moment all of its buckets were averaged.
        """
        return 0.0 if self._lane is None else self._lane.take_exposed_s()

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        if self._lane is not None:
            self._lane.close()

    def _mark(self, number: int, name: str) -> None:
        if name != QUEUED:
            HERE.reduce(number, max(self._buckets, len(self._sizes)), name)
        if self._tracer is not None:
            self._tracer.mark(number, name)


def hybrid_hook(
    state: HybridState,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]  # torch's stubs don't export it
) -> torch.futures.Future[Tensor]:
    """Average DDP's `bucket` over all ranks as `state` says; for `DistributedDataParallel.register_comm_hook`."""
    state.note(bucket.index(), bucket.buffer().numel())
    return state.submit(bucket.index(), bucket.buffer(), is_last=bucket.is_last())
