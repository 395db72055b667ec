"""The traced step's file, for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourminutes.comm.trace import Span, chrome_trace
from fourminutes.files import write_text
from fourminutes.record import TracedSpan, TracedStep, provenance
from fourminutes.train.listen import Listener


class TraceFile(Listener):
    """Writes the way of every bucket through the step that the plan names, and reads it again for the run's record.

    Args:
        path: the file.
        step: the step.
        hosts: host of every rank.
        about: what else the file says, as plain values; one that says otherwise is of another run.
    """

    def __init__(self, path: Path, step: int, hosts: Sequence[str], about: dict[str, Any]) -> None:
        self._path, self._step, self._hosts, self._about = path, step, hosts, about

    def reduction_traced(self, spans_by_rank: Sequence[Sequence[Span]]) -> None:
        """Write the file."""
        about = {**self._about, "provenance": provenance().model_dump(mode="json")}
        write_text(self._path, json.dumps(chrome_trace(spans_by_rank, self._hosts, about)) + "\n")

    def read(self) -> TracedStep | None:
        """What the file comes to, which may be from before the run was interrupted; None where this run has none."""
        if not self._path.is_file():
            return None
        try:
            trace = json.loads(self._path.read_text())
        except ValueError:  # damaged since; no reason to lose a finished run for
            return None
        if any(trace["otherData"].get(key) != value for key, value in self._about.items()):
            return None
        spans = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == 0]
        first_us = min(event["ts"] for event in spans)
        overlaps = trace["otherData"]["overlap_by_rank"]
        return TracedStep(
            step=self._step,
            spans=tuple(_span(event, first_us) for event in spans),
            busy_s=tuple(rank["busy_s"] for rank in overlaps),
            exposed_s=tuple(rank["exposed_s"] for rank in overlaps),
        )


def _span(event: dict[str, Any], first_us: float) -> TracedSpan:
    start_s = (event["ts"] - first_us) / 1e6
    return TracedSpan(bucket=event["tid"], name=event["name"], start_s=start_s, end_s=start_s + event["dur"] / 1e6)
