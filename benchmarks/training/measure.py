"""Steps timed in windows, the loops taking turns, and what becomes of the times: rates, quartiles, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from loops import Case, Loop, autocast_dtype

Rates = Mapping[Case, Sequence[float]]


@dataclass(frozen=True)
class Protocol:
    """How it is measured.

    Attributes:
        rounds: windows of each loop.
        steps: steps a window.
        warm_up: steps of each loop before the first round: to compile, to try kernels, to find the loss scale.
        lead_in: untimed steps before each window, so that it starts with what the loop leaves in caches and queues.
    """

    rounds: int
    steps: int
    warm_up: int
    lead_in: int


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def interleaved(loops: Mapping[Case, Loop], protocol: Protocol, device: torch.device) -> dict[Case, list[float]]:
    """Images a second of each loop, a value a window; they take turns, so that other load falls on all alike."""
    rates: dict[Case, list[float]] = {case: [] for case in loops}
    for _ in range(protocol.rounds):
        for case, loop in loops.items():
            loop.settle()
            repeated(loop.step, protocol.lead_in)
            window_s = timed_s(lambda step=loop.step: repeated(step, protocol.steps), device)
            rates[case].append(case.batch * protocol.steps / window_s)
    return rates


def repeated(step: Callable[[], None], times: int) -> None:
    """Call `step` that often."""
    for _ in range(times):
        step()


def timed_s(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that `work` takes on the device, from when it has nothing else to do; by its own events on a GPU."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        work()
        return time.perf_counter() - start_s
    stream = torch.cuda.current_stream(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / 1000


def compared(rates: Rates) -> dict[Case, dict[str, Spread]]:
    """Each case's rate over that of others, window by window, for those of the others that were measured."""
    found: dict[Case, dict[str, Spread]] = {}
    for case, own in rates.items():
        others = {
            "to plain": next((other for other in rates if is_plain_twin(other, case)), case),
            "to plain, compiled": next((other for other in rates if is_plain_twin(other, case, compiled=True)), case),
            "to largest batch": replace(case, batch=max(other.batch for other in rates)),
            "to held input": replace(case, input="held"),
        }
        found[case] = {
            name: Spread.of([mine / theirs for mine, theirs in zip(own, rates[other], strict=True)])
            for name, other in others.items()
            if other != case
        }
    return found


def is_plain_twin(other: Case, case: Case, *, compiled: bool = False) -> bool:
    """Whether `other` is the plain loop that our `case` is held against: of its batch and its number formats."""
    return (
        (case.loop, other.loop) == ("ours", "plain")
        and (other.batch, other.compile) == (case.batch, compiled)
        and autocast_dtype(other.precision) == autocast_dtype(case.precision)
    )


def table(rates: Rates) -> str:
    """All cases and their ratios, in Markdown."""
    ratios = compared(rates)
    columns = list(dict.fromkeys(name for own in ratios.values() for name in own))
    head = ["images a device", "loop", "input", "images/s", "quartiles", *columns]
    lines = [head, ["---"] * len(head)]
    for case, own in sorted(rates.items(), key=lambda item: item[0].batch):
        rate = Spread.of(own)
        lines.append(
            [
                str(case.batch),
                named(case),
                case.input,
                shown(rate.median),
                f"{shown(rate.low)} to {shown(rate.high)}",
                *(f"{ratios[case][name].median:.2f}" if name in ratios[case] else "" for name in columns),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(rate: float) -> str:
    """Images a second, with three digits at least."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def named(case: Case) -> str:
    """The loop in words."""
    dtype = {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}
    form = case.precision if case.loop == "ours" else dtype[autocast_dtype(case.precision)]
    extras = [name for name, on in (("compiled", case.compile), ("CUDA graph", case.cuda_graph)) if on]
    return ", ".join([case.loop, form, *extras])


def as_record(rates: Rates) -> list[dict[str, Any]]:
    """All cases as plain values, every window's rate among them."""
    ratios = compared(rates)
    return [
        {
            **asdict(case),
            "n": len(own),
            "images_per_s": asdict(Spread.of(own)),
            "windows_images_per_s": list(own),
            "ratios": {
                name.replace(", ", " ").replace(" ", "_"): asdict(ratio) for name, ratio in ratios[case].items()
            },
        }
        for case, own in rates.items()
    ]
