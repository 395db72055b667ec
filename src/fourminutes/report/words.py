"""Values in words: durations, sizes, names of networks, hardware."""

from __future__ import annotations

import math

from fourminutes.record import Placement, Provenance, RunRecord

_MODELS = {"alexnet_bn": "AlexNet-BN", "resnet50": "ResNet-50", "resnet_small": "ResNet small"}


def duration(seconds: float) -> str:
    """`seconds` as ``3:05`` (minutes) or ``7:02:10`` (hours)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """`count` bytes in binary units, such as ``16 KiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(count, 1)) // 10), len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def minutes(number: float) -> str:
    """`number` minutes with as many digits as published times carry."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def model_name(record: RunRecord) -> str:
    """The network as it is called, with its width where that is not the paper's."""
    model = record.settings.model
    return _MODELS[model.name] + ("" if model.width == 1 else f" ×{model.width:g}")


def optimizer_name(record: RunRecord) -> str:
    """The update rule, with LARS' variant where it is not the paper's."""
    optimizer = record.settings.optimizer
    if optimizer.kind == "sgd":
        return "SGD"
    return "LARS" if optimizer.variant == "paper" else f"LARS {optimizer.variant}"


def hardware(placement: Placement, provenance: Provenance) -> str:
    """What computed: the device, how many of it, on how many hosts."""
    device = provenance.cpu if placement.device == "cpu" else placement.device
    device = device.replace("(R)", "").replace("(TM)", "")
    hosts = len(set(placement.hosts))
    where = f", {hosts} hosts" if hosts > 1 else ""
    return f"{len(placement.hosts)} × {device}{where}"


def count(number: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
