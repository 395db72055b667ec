"""A communication hook for DistributedDataParallel: averages buckets by ring or hierarchy, in half precision or full.

With any DDP model::

    state = ReduceState(discover(resolve_launch(), group_ranks=None), ReducePlan(algorithm="hierarchical", wire="fp16"))
    ddp.register_comm_hook(state, reduce_hook)

Buckets are summed one after another in the order in which DDP hands them over, which is the same on all ranks: by one
thread on the CPU, on one stream on a GPU. So the stages of two buckets never cross, nothing can deadlock, and the same
gradients give the same bits from run to run. While a bucket is summed, the backward pass goes on.
"""

# No `from __future__ import annotations` here: DDP compares the hook's annotations with the types themselves.

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, distributed

from fourminutes.comm.collectives import ALGORITHMS
from fourminutes.comm.topology import Topology
from fourminutes.plan import ReducePlan

WIRE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_CLOSE_WITHIN_S = 10.0  # after a failure elsewhere a peer may be gone, and the thread wait for it in vain

Average = Callable[[Tensor], Tensor]
TensorFuture = torch.futures.Future[Tensor]


def predivisor(world_size: int) -> int:
    """The power of two nearest above sqrt(world_size), by which gradients are divided before a half-precision wire.

    Sums of P like terms grow by up to P, those of P independent terms by sqrt(P). Dividing by all of P first would
    flush small gradients to zero, dividing only afterwards would overflow; at the square root the sum has the headroom
    of a factor sqrt(P) on both sides. A power of two leaves the mantissa as it is.
    """
    return 1 << math.ceil(math.log2(world_size) / 2)


class ReduceState:
    """What `reduce_hook` needs: the processes, how to reduce, and the one queue of buckets.

    Args:
        topology: the processes and their groups.
        settings: algorithm and number format on the wire; the bucket size is DDP's own argument `bucket_cap_mb`.
    """

    def __init__(self, topology: Topology, settings: ReducePlan) -> None:
        self.topology = topology
        self.settings = settings
        self._lane: _Lane | None = None
        self._sizes: dict[int, int] = {}

    @property
    def layout(self) -> list[int]:
        """Elements of every bucket of the last backward pass, in the order of their reduction."""
        return [self._sizes[number] for number in sorted(self._sizes)]

    def note(self, number: int, elements: int) -> None:
        """Bucket `number` of this backward pass has so many `elements`."""
        if number == 0:
            self._sizes.clear()
        self._sizes[number] = elements

    def average(self, buffer: Tensor) -> Tensor:
        """Replace `buffer`, flat, fp32 or half, by its mean over all ranks, and return it.

        With wire type w, P ranks, and c = `predivisor(P)` for a half-precision wire, else 1:
        mean = sum over ranks of w(x / c), in w, divided by P / c in the wider of w and the buffer's type.
        """
        wire_dtype = WIRE_DTYPES[self.settings.wire]
        before = 1 if wire_dtype == torch.float32 else predivisor(self.topology.world_size)
        wire = buffer if buffer.dtype == wire_dtype else torch.empty_like(buffer, dtype=wire_dtype)
        if wire is not buffer or before != 1:
            torch.mul(buffer, 1 / before, out=wire)  # one pass: scaled in the wider type, then rounded to the wire's
        ALGORITHMS[self.settings.algorithm](wire, self.topology)
        after = self.topology.world_size / before
        if wire.element_size() > buffer.element_size():
            return buffer.copy_(wire.div_(after))
        return (buffer if wire is buffer else buffer.copy_(wire)).div_(after)

    def submit(self, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """Queue `buffer`; the future delivers it averaged. `is_last` marks the last bucket of a backward pass."""
        if self._lane is None:  # where buckets lie is known by the first
            self._lane = _StreamLane(self.average) if buffer.is_cuda else _ThreadLane(self.average)
        return self._lane.submit(buffer, is_last=is_last)

    def take_exposed_s(self) -> float:
        """Communication that no computing hid since the last call, in seconds; asked for after a backward pass.

        For every backward pass: from the moment its last bucket was handed over, when no gradient is left to compute,
        to the moment that bucket was averaged.
        """
        return 0.0 if self._lane is None else self._lane.take_exposed_s()

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if self._lane is not None:
            self._lane.close()


def reduce_hook(
    state: ReduceState,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]  # torch's stubs don't export it
) -> torch.futures.Future[Tensor]:
    """Average DDP's `bucket` over all ranks as `state` says; for `DistributedDataParallel.register_comm_hook`."""
    state.note(bucket.index(), bucket.buffer().numel())
    return state.submit(bucket.buffer(), is_last=bucket.is_last())


class _Lane(Protocol):
    """Averages buckets one after another, in the order of their submission."""

    def submit(self, buffer: Tensor, *, is_last: bool) -> TensorFuture: ...

    def take_exposed_s(self) -> float: ...

    def close(self) -> None: ...


class _ThreadLane:
    """One thread with a queue: collectives on the CPU block their caller."""

    def __init__(self, average: Average) -> None:
        self._average = average
        self._jobs: queue.SimpleQueue[tuple[Tensor, TensorFuture, float | None] | None] = queue.SimpleQueue()
        self._exposed_s: deque[float] = deque()
        # A daemon, so that a rank that fails elsewhere can exit although a peer keeps it waiting here.
        self._thread = threading.Thread(target=self._work, name="reduce", daemon=True)
        self._thread.start()

    def submit(self, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        future: TensorFuture = torch.futures.Future()
        self._jobs.put((buffer, future, time.perf_counter() if is_last else None))
        return future

    def take_exposed_s(self) -> float:
        return sum(self._exposed_s.popleft() for _ in range(len(self._exposed_s)))

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(_CLOSE_WITHIN_S)

    def _work(self) -> None:
        failure: Exception | None = None
        while (job := self._jobs.get()) is not None:
            buffer, future, last_submitted_s = job
            try:
                if failure is not None:
                    raise failure  # after a failure the ranks may be at different buckets: nothing more is sent
                self._average(buffer)
            except Exception as error:
                failure = error
                future.set_exception(error)  # type: ignore[arg-type]  # torch's stub is too narrow
                continue
            if last_submitted_s is not None:
                self._exposed_s.append(time.perf_counter() - last_submitted_s)
            future.set_result(buffer)


class _StreamLane:
    """One stream beside the computing one: collectives on a GPU are queued there, in order."""

    def __init__(self, average: Average) -> None:
        self._average = average
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._exposed: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def submit(self, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        future: TensorFuture = torch.futures.Future(devices=[buffer.device])
        submitted = _timed_event(torch.cuda.current_stream())
        self._stream.wait_event(submitted)
        with torch.cuda.stream(self._stream):
            self._average(buffer)
            if is_last:
                self._exposed.append((submitted, _timed_event(self._stream)))
            # The future remembers this stream's state; whoever waits for it waits for the average.
            future.set_result(buffer)
        return future

    def take_exposed_s(self) -> float:
        exposed_s = 0.0
        while self._exposed:
            submitted, done = self._exposed.popleft()
            done.synchronize()
            exposed_s += submitted.elapsed_time(done) / 1000
        return exposed_s

    def close(self) -> None:
        self._stream.synchronize()


def _timed_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
