"""The way of every bucket through one step: ready, queued, each stage, done; over all ranks, as a Chrome trace."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

_Moment = float | torch.cuda.Event

QUEUED = "queued"


@dataclass(frozen=True)
class Span:
    """A stretch of a bucket's way on one rank.

    Attributes:
        bucket: number of the bucket, in the order of reduction.
        name: ``queued``, or what was done to it: a stage, or the casts before and after.
        start_s: since the Unix epoch, by this host's clock.
        end_s: likewise.
    """

    bucket: int
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Overlap:
    """What of a step's communication the backward pass hid.

    Attributes:
        busy_s: time in which some bucket was being reduced.
        exposed_s: of that, time after the last bucket was ready, when no gradient was left to compute.
    """

    busy_s: float
    exposed_s: float

    @property
    def hidden_percent(self) -> float:
        """Share of the communication that ran behind the backward pass."""
        return 100 * (1 - self.exposed_s / self.busy_s) if self.busy_s else 100.0


class Tracer:
    """Notes when each bucket comes to its next stretch: by the clock on a CPU, by events in the stream on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._origin_s, self._origin = time.time(), _moment(device)
        self._marks: dict[int, list[tuple[str, _Moment]]] = {}

    def mark(self, bucket: int, name: str) -> None:
        """From now on `bucket` is in the stretch `name`; an empty name ends its way."""
        self._marks.setdefault(bucket, []).append((name, _moment(self._device)))

    def spans(self) -> list[Span]:
        """All stretches that have ended; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [
            Span(bucket, name, self._seconds(start), self._seconds(end))
            for bucket, marks in sorted(self._marks.items())
            for (name, start), (_, end) in pairwise(marks)
            if name
        ]

    def _seconds(self, moment: _Moment) -> float:
        if isinstance(moment, float) and isinstance(self._origin, float):
            return self._origin_s + moment - self._origin
        assert isinstance(moment, torch.cuda.Event)
        assert isinstance(self._origin, torch.cuda.Event)
        return self._origin_s + float(self._origin.elapsed_time(moment)) / 1000


def overlap(spans: Sequence[Span]) -> Overlap:
    """Of one rank's spans of one backward pass; buckets that are reduced beside one another count once."""
    if not spans:
        return Overlap(0.0, 0.0)
    last_ready_s = max(span.start_s for span in spans if span.name == QUEUED)
    busy_s = exposed_s = 0.0
    counted_until_s = -math.inf
    for span in sorted((span for span in spans if span.name != QUEUED), key=lambda span: span.start_s):
        start_s = max(span.start_s, counted_until_s)
        busy_s += max(0.0, span.end_s - start_s)
        exposed_s += max(0.0, span.end_s - max(start_s, last_ready_s))
        counted_until_s = max(counted_until_s, span.end_s)
    return Overlap(busy_s, exposed_s)


def chrome_trace(
    spans_by_rank: Sequence[Sequence[Span]], hosts: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """The spans of all ranks in the trace event format, which Perfetto and chrome://tracing show.

    A rank is a process, a bucket a thread of it; times in microseconds from the first span on. Ranks of several hosts
    are as far apart as the hosts' clocks. What `about` holds, and each rank's overlap, is the trace's ``otherData``.
    """
    first_s = min((span.start_s for spans in spans_by_rank for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for rank, spans in enumerate(spans_by_rank):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}, {hosts[rank]}"}})
        for bucket in sorted({span.bucket for span in spans}):
            thread = {"name": f"bucket {bucket}"}
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": bucket, "args": thread})
        events += [
            {
                "ph": "X",
                "name": span.name,
                "pid": rank,
                "tid": span.bucket,
                "ts": 1e6 * (span.start_s - first_s),
                "dur": 1e6 * (span.end_s - span.start_s),
            }
            for span in spans
        ]
    overlaps = [asdict(one) | {"hidden_percent": one.hidden_percent} for one in map(overlap, spans_by_rank)]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {**about, "overlap_by_rank": overlaps}}


def _moment(device: torch.device) -> _Moment:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
