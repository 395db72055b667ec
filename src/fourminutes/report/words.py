"""Values in words: durations, sizes, names of networks, hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fourminutes.plan import ModelPlan, OptimizerPlan
from fourminutes.record import CollectiveTiming, Placement, Provenance, Session

#: Networks of the paper by their name in a plan, as the published tables call them.
PAPER_MODELS = {"alexnet": "AlexNet", "alexnet_bn": "AlexNet", "resnet50": "ResNet-50"}
_MODELS = {
    "alexnet": "AlexNet",
    "alexnet_bn": "AlexNet-BN",
    "resnet50": "ResNet-50",
    "resnet_small": "ResNet small",
}


def duration(seconds: float) -> str:
    """`seconds` as ``3:05`` (minutes) or ``7:02:10`` (hours)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ending(session: Session) -> str:
    """How a stretch of a run ended that another one followed, such as ``interrupted at step 40 (SIGUSR1, job 12)``."""
    how = "interrupted at" if session.ended == "interrupted" else "ended without a word, and went on from"
    by = ", ".join([*([session.why] if session.why else []), *([f"job {session.job}"] if session.job else [])])
    return f"{how} step {session.to_step}{f' ({by})' if by else ''}"


def size(count: float) -> str:
    """`count` bytes in binary units, such as ``16 KiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(count, 1)) // 10), len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def number(value: float) -> str:
    """`value` with at most four digits that mean something, such as ``0.05`` or ``12.8``."""
    return f"{value:.4g}"


def minutes(number: float) -> str:
    """`number` minutes with as many digits as published times carry."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def model_name(model: ModelPlan) -> str:
    """The network as it is called, with its width where that is not the paper's."""
    return _MODELS[model.name] + ("" if model.width == 1 else f" ×{model.width:g}")


def optimizer_name(optimizer: OptimizerPlan) -> str:
    """The update rule, with LARS' variant where it is not the paper's."""
    if optimizer.kind == "sgd":
        return "SGD Nesterov" if optimizer.nesterov else "SGD"
    return "LARS" if optimizer.variant == "paper" else f"LARS {optimizer.variant}"


def hardware(placement: Placement, provenance: Provenance) -> str:
    """What computed: processes on hosts and their CPU, or devices by number, on how many hosts."""
    hosts = count(len(set(placement.hosts)), "host")
    if placement.device != "cpu":
        return f"{len(placement.hosts)} × {placement.device}, {hosts}"
    # Processes may share a CPU: their number is not that of the CPUs.
    processes = count(len(placement.hosts), "process")
    return f"{processes}, {hosts}, {_cpu(provenance)} ({count(provenance.cpu_cores, 'core')})"


def hardware_brief(placement: Placement, provenance: Provenance) -> str:
    """The same, short enough for a table's cell; one host goes without saying."""
    several = len(set(placement.hosts))
    hosts = f", {several} hosts" if several > 1 else ""
    if placement.device != "cpu":
        return f"{len(placement.hosts)} × {placement.device}{hosts}"
    return f"{len(placement.hosts)} proc{hosts} · {_cpu(provenance)}, {count(provenance.cpu_cores, 'core')}"


def _cpu(provenance: Provenance) -> str:
    return provenance.cpu.replace("(R)", "").replace("(TM)", "")


def count(number: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def arrangement(timing: CollectiveTiming, among: Sequence[CollectiveTiming]) -> str:
    """The algorithm of a timing, with its groups and number format where those `among` it have several."""
    groups = {other.group_ranks for other in among if other.algorithm == timing.algorithm}
    of = f" of {timing.group_ranks}" if len(groups) > 1 else ""
    wire = f", {timing.wire}" if len({other.wire for other in among}) > 1 else ""
    return f"{timing.algorithm}{of}{wire}"
