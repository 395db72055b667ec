"""A network's profile, measured on the device at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from fourminutes.comm.ready import as_in_training, moments_of, noise
from fourminutes.comm.trace import Tracer
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, Precision
from fourminutes.record import LayerProfile, ProfileRecord, provenance
from fourminutes.train.precision import in_precision, settle_arithmetic

_PASSES = 7
_KINDS = {nn.BatchNorm2d: "norm", nn.Linear: "linear"}
#: Modules with parameters of their own, by name, in the order of those.
Layers = Sequence[tuple[str, nn.Module]]


def measured_profile(
    model: ModelPlan, classes: int, images: int, precision: Precision, device_name: str
) -> ProfileRecord:
    """Time every layer's forward pass, and when its gradients come, on a batch of noise; medians of seven passes.

    The passes are those of training, as in `readiness_of`. A layer's forward time is its own; what has no parameters,
    as ReLUs and pooling, is in none. Its backward time is from the gradients of the layer after it to its own, with
    what lies between.

    Raises:
        UserError: there is no such device.
    """
    device = _device(device_name)
    settle_arithmetic()  # as a run does
    network = build_model(model, classes, seed=0).to(device)
    running = in_precision(network, precision, device)
    batch = noise(images, model.image_px, device)
    layers = _layers(network)
    forward = _forward(running, layers, batch)
    ready = _by_layer(layers, moments_of(running, batch, _PASSES))
    # A shortcut's gradients may come after those of the layers before it in the network's order.
    order = sorted(range(len(layers)), key=lambda number: ready[number].median)
    backward_s = {order[0]: ready[order[0]].median}
    backward_s |= {later: ready[later].median - ready[earlier].median for earlier, later in pairwise(order)}
    return ProfileRecord(
        model=model,
        classes=classes,
        images=images,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=precision,
        origin="measured",
        passes=_PASSES,
        provenance=provenance(),
        layers=tuple(
            LayerProfile(
                name=name,
                kind=_KINDS.get(type(layer), "conv"),
                parameters=sum(weight.numel() for weight in layer.parameters()),
                forward_s=forward[number].median,
                backward_s=backward_s[number],
                ready_s=ready[number].median,
                forward_quartiles_s=forward[number].quartiles,
                ready_quartiles_s=ready[number].quartiles,
            )
            for number, (name, layer) in enumerate(layers)
        ),
    )


@dataclass(frozen=True)
class _Seen:
    """A moment or a duration over the passes, in seconds."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, times_s: Sequence[float]) -> _Seen:
        low, median, high = (float(value) for value in np.percentile(times_s, (25, 50, 75)))
        return cls(median, (low, high))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; take cpu, or --tflops and --memory-gb-s of one")
    return torch.device(name)


def _forward(running: nn.Module, layers: Layers, batch: torch.Tensor) -> list[_Seen]:
    """How long each layer's forward pass takes, after one pass that warms up; `running` calls them."""
    with as_in_training(running, batch.device), torch.no_grad():
        passes = [_one_forward(running, layers, batch) for _ in range(1 + _PASSES)][1:]
    return [_Seen.of(times) for times in zip(*passes, strict=True)]


def _one_forward(running: nn.Module, layers: Layers, batch: torch.Tensor) -> list[float]:
    tracer, hooks = Tracer(batch.device), []
    for number, (_, module) in enumerate(layers):
        # Before the copies in another number format that a layer may make of its weights.
        begin = module.register_forward_pre_hook(partial(_mark, tracer, number, "forward"), prepend=True)
        hooks.append(begin)
        hooks.append(module.register_forward_hook(partial(_mark, tracer, number, "")))
    running(batch)
    for hook in hooks:
        hook.remove()
    return [span.end_s - span.start_s for span in tracer.spans()]


def _mark(tracer: Tracer, number: int, name: str, *_module: Any) -> None:
    tracer.mark(number, name)


def _layers(network: nn.Module) -> Layers:
    return [(name, module) for name, module in network.named_modules() if list(module.parameters(recurse=False))]


def _by_layer(layers: Layers, moments_s: Sequence[Sequence[float]]) -> list[_Seen]:
    """A layer is ready with its last tensor, in each pass."""
    found, at = [], 0
    for _, layer in layers:
        tensors = len(list(layer.parameters()))
        found.append(_Seen.of([max(times) for times in zip(*moments_s[at : at + tensors], strict=True)]))
        at += tensors
    return found
