"""The traced step's file, for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourminutes.comm.trace import Span, chrome_trace
from fourminutes.files import write_text
from fourminutes.record import provenance
from fourminutes.train.listen import Listener


class TraceFile(Listener):
    """Writes the way of every bucket through the step that the plan names.

    Args:
        path: the file.
        hosts: host of every rank.
        about: what else the file says, as plain values.
    """

    def __init__(self, path: Path, hosts: Sequence[str], about: dict[str, Any]) -> None:
        self._path, self._hosts, self._about = path, hosts, about

    def reduction_traced(self, spans_by_rank: Sequence[Sequence[Span]]) -> None:
        """Write the file."""
        about = {**self._about, "provenance": provenance().model_dump(mode="json")}
        write_text(self._path, json.dumps(chrome_trace(spans_by_rank, self._hosts, about)) + "\n")
