"""Where buckets are averaged, one after another in the order of their submission, while the backward pass goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_CLOSE_WITHIN_S = 10.0  # after a failure elsewhere a peer may be gone, and the thread wait for it in vain

#: Averages bucket number so-and-so where it is.
Average = Callable[[int, Tensor], Tensor]
TensorFuture = torch.futures.Future[Tensor]


class Lane(Protocol):
    """Averages buckets one after another, in the order of their submission."""

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """Queue bucket `number`; the future delivers it averaged. `is_last` marks a backward pass's last one."""

    def take_exposed_s(self) -> float:
        """Seconds since the last call from a last bucket's submission to its average."""

    def close(self) -> None:
        """Finish what is queued, and end."""


class ThreadLane:
    """One thread with a queue: collectives on the CPU block their caller."""

    def __init__(self, average: Average) -> None:
        self._average = average
        self._jobs: queue.SimpleQueue[tuple[int, Tensor, TensorFuture, float | None] | None] = queue.SimpleQueue()
        self._exposed_s: deque[float] = deque()
        # A daemon, so that a rank that fails elsewhere can exit although a peer keeps it waiting here.
        self._thread = threading.Thread(target=self._work, name="reduce", daemon=True)
        self._thread.start()

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """As `Lane.submit`."""
        future: TensorFuture = torch.futures.Future()
        self._jobs.put((number, buffer, future, time.perf_counter() if is_last else None))
        return future

    def take_exposed_s(self) -> float:
        """As `Lane.take_exposed_s`."""
        return sum(self._exposed_s.popleft() for _ in range(len(self._exposed_s)))

    def close(self) -> None:
        """As `Lane.close`; no longer than some seconds where a peer keeps the thread waiting."""
        self._jobs.put(None)
        self._thread.join(_CLOSE_WITHIN_S)

    def _work(self) -> None:
        failure: Exception | None = None
        while (job := self._jobs.get()) is not None:
            number, buffer, future, last_submitted_s = job
            try:
                if failure is not None:
                    raise failure  # after a failure the ranks may be at different buckets: nothing more is sent
                self._average(number, buffer)
            except Exception as error:
                failure = error
                future.set_exception(error)  # type: ignore[arg-type]  # torch's stub is too narrow
                continue
            if last_submitted_s is not None:
                self._exposed_s.append(time.perf_counter() - last_submitted_s)
            future.set_result(buffer)


class StreamLane:
    """One stream beside the computing one: collectives on a GPU are queued there, in order.

    What is submitted while a CUDA graph is recorded becomes part of that graph, and its exposed time is not measured:
    the events of a recording have no times.
    """

    def __init__(self, average: Average) -> None:
        self._average = average
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._exposed: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """As `Lane.submit`."""
        future: TensorFuture = torch.futures.Future(devices=[buffer.device])
        submitted = _timed_event(torch.cuda.current_stream())
        self._stream.wait_event(submitted)
        with torch.cuda.stream(self._stream):
            self._average(number, buffer)
            if is_last and not torch.cuda.is_current_stream_capturing():
                self._exposed.append((submitted, _timed_event(self._stream)))
            # The future remembers this stream's state; whoever waits for it waits for the average.
            future.set_result(buffer)
        return future

    def take_exposed_s(self) -> float:
        """As `Lane.take_exposed_s`; waits for the device."""
        exposed_s = 0.0
        while self._exposed:
            submitted, done = self._exposed.popleft()
            done.synchronize()
            exposed_s += submitted.elapsed_time(done) / 1000
        return exposed_s

    def close(self) -> None:
        """As `Lane.close`."""
        self._stream.synchronize()


def _timed_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
