"""Where buckets are averaged, in the order of their submission, while the backward pass goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_CLOSE_WITHIN_S = 10.0  # after a failure elsewhere a peer may be gone, and a thread wait for it in vain

#: Averages bucket number so-and-so where it is.
Average = Callable[[int, Tensor], Tensor]
TensorFuture = torch.futures.Future[Tensor]


class Lane(Protocol):
    """Averages buckets in the order of their submission."""

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """Queue bucket `number`; the future delivers it averaged. `is_last` marks a backward pass's last one."""

    def take_exposed_s(self) -> float:
        """Seconds since the last call from last buckets' submissions until all that was queued was averaged."""

    def close(self) -> None:
        """Finish what is queued, and end."""


class ThreadLanes:
    """Threads with a queue each, since collectives on the CPU block their caller; bucket n goes to thread n modulo all.

    Within a thread buckets follow one another; between threads nothing is ordered, so buckets of different threads need
    different communicators. Since a bucket's thread depends on its number alone, all ranks queue the same in each.

    Args:
        average: averages a bucket.
        lanes: number of threads.
    """

    def __init__(self, average: Average, lanes: int) -> None:
        self._progress = _Progress()
        self._threads = [_ReducingThread(average, self._progress) for _ in range(lanes)]

    def submit(self, number: int, buffer: Tensor, *, is_last: bool) -> TensorFuture:
        """As `Lane.submit`."""
        self._progress.begins(is_last=is_last)
        return self._threads[number % len(self._threads)].submit(number, buffer)

    def take_exposed_s(self) -> float:
        """As `Lane.take_exposed_s`."""
        return self._progress.take_s()

    def close(self) -> None:
        """As `Lane.close`; no longer than some seconds where a peer keeps a thread waiting."""
        for thread in self._threads:
            thread.end()
        until_s = time.monotonic() + _CLOSE_WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))


class _Progress:
    """What all threads know of one another: buckets under way, exposed time, and the first failure.

    Time is exposed from a backward pass's last bucket, when nothing is left to compute, until no bucket is under way.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._lock = threading.Lock()
        self._under_way = 0
        self._since_s: float | None = None
        self._exposed_s = 0.0

    def begins(self, *, is_last: bool) -> None:
        with self._lock:
            self._under_way += 1
            if is_last:
                self._since_s = time.perf_counter()

    def ends(self) -> None:
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0 and self._since_s is not None:
                self._exposed_s += time.perf_counter() - self._since_s
                self._since_s = None

    def take_s(self) -> float:
        with self._lock:
            exposed_s, self._exposed_s = self._exposed_s, 0.0
            return exposed_s


class _ReducingThread:
    """One thread with its queue."""

    def __init__(self, average: Average, progress: _Progress) -> None:
        self._average, self._progress = average, progress
        self._jobs: queue.SimpleQueue[tuple[int, Tensor, TensorFuture] | None] = queue.SimpleQueue()
        # A daemon, so that a rank that fails elsewhere can exit although a peer keeps it waiting here.
        self._thread = threading.Thread(target=self._work, name="reduce", daemon=True)
        self._thread.start()

    def submit(self, number: int, buffer: Tensor) -> TensorFuture:
        future: TensorFuture = torch.futures.Future()
        self._jobs.put((number, buffer, future))
        return future

    def end(self) -> None:
        self._jobs.put(None)

    def join(self, within_s: float) -> None:
        self._thread.join(within_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            number, buffer, future = job
            try:
                if self._progress.failure is not None:
                    # The ranks may be at different buckets by now: nothing more is sent.
                    raise self._progress.failure
                self._average(number, buffer)
            except Exception as error:
                self._progress.failure = error
                future.set_exception(error)  # type: ignore[arg-type]  # torch's stub is too narrow
                continue
            self._progress.ends()
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
