"""Where a GPU is idle within some steps, and whether it was for want of a launch; read off a profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_ROWS, _NAME_WIDTH = 20, 60


@dataclass(frozen=True)
class Idle:
    """The time between the first and the last thing that a GPU did, in microseconds.

    Attributes:
        span_us: all of it.
        idle_us: of it, that in which the GPU did nothing.
        launch_bound_us: of that, what passed before work whose launch the host only began when the GPU was idle
            already; the rest lies between kernels that were queued in time.
        activities: kernels, copies and fills.
    """

    span_us: float
    idle_us: float
    launch_bound_us: float
    activities: int


def profiled(step: Callable[[], None], steps: int, device: torch.device) -> str:
    """`steps` steps' table of torch's profiler, and where a GPU was idle in them."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as trace:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    table: str = trace.key_averages().table(
        sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total",
        row_limit=_ROWS,
        max_name_column_width=_NAME_WIDTH,
    )
    return (
        f"{table}\n{_told(idle(_events(trace)), steps) if on_gpu else 'idle time: that of a GPU; there is none here'}\n"
    )


def idle(events: Iterable[dict[str, Any]]) -> Idle | None:
    """The idle time in a trace of torch's profiler, given as Chrome's trace events; None without work of a GPU."""
    launched_us: dict[int, float] = {}
    work: list[tuple[float, float, int]] = []
    for event in events:
        number = event.get("args", {}).get("correlation", -1)
        if event.get("cat") in _LAUNCHES:
            launched_us[number] = event["ts"]
        elif event.get("cat") in _ON_DEVICE:
            work.append((event["ts"], event["ts"] + event["dur"], number))
    if not work:
        return None
    work.sort()
    begin_us = free_us = work[0][0]
    idle_us = launch_bound_us = 0.0
    for start_us, end_us, number in work:
        gap_us = max(0.0, start_us - free_us)
        idle_us += gap_us
        if launched_us.get(number, begin_us) > free_us:
            launch_bound_us += gap_us
        free_us = max(free_us, end_us)
    return Idle(free_us - begin_us, idle_us, launch_bound_us, len(work))


def _events(trace: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def _told(found: Idle | None, steps: int) -> str:
    if found is None:
        return "idle time: the profiler saw no work of the GPU; it may lack the right to read its counters"
    per_step_ms = found.span_us / steps / 1e3
    return (
        f"{found.activities / steps:.0f} kernels, copies and fills a step; {per_step_ms:.2f} ms a step under the "
        f"profiler, which slows the host down; of this the GPU is idle {100 * found.idle_us / found.span_us:.1f} %, "
        f"waiting for a launch {100 * found.launch_bound_us / found.span_us:.1f} %"
    )
