"""A network's profile, measured on the device at hand."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fourminutes.comm.ready import readiness_of
from fourminutes.comm.trace import Tracer
from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, Precision
from fourminutes.record import LayerProfile, ProfileRecord, provenance
from fourminutes.train.precision import in_precision

_PASSES = 5
_KINDS = {nn.BatchNorm2d: "norm", nn.Linear: "linear"}
#: Modules with parameters of their own, by name, in the order of those.
Layers = Sequence[tuple[str, nn.Module]]


def measured_profile(
    model: ModelPlan, classes: int, images: int, precision: Precision, device_name: str
) -> ProfileRecord:
    """Time every layer's forward pass, and when its gradients come, on a batch of zeros; medians of five passes.

    In evaluation mode, as `readiness_of`. A layer's backward time is from the gradients of the layer after it to its
    own.

    Raises:
        UserError: there is no such device.
    """
    device = _device(device_name)
    network = build_model(model, classes, seed=0).to(device)
    running = in_precision(network, precision, device)
    batch = torch.zeros(images, 3, model.image_px, model.image_px, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)  # as the loader hands pictures over
    layers = _layers(network)
    forward_s = _forward(running, layers, batch)
    ready_s = _by_layer(layers, readiness_of(running, batch, _PASSES).ready_s)
    # A shortcut's gradients may come after those of the layers before it in the network's order.
    order = sorted(range(len(layers)), key=ready_s.__getitem__)
    backward_s = {order[0]: ready_s[order[0]]}
    backward_s |= {later: ready_s[later] - ready_s[earlier] for earlier, later in pairwise(order)}
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
                forward_s=forward_s[number],
                backward_s=backward_s[number],
                ready_s=ready_s[number],
            )
            for number, (name, layer) in enumerate(layers)
        ),
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; take cpu, or --tflops and --memory-gb-s of one")
    return torch.device(name)


def _forward(running: nn.Module, layers: Layers, batch: torch.Tensor) -> list[float]:
    """Median seconds of each layer's forward pass, after one pass that warms up; `running` calls them."""
    was_training = running.training
    running.eval()
    with torch.no_grad():
        passes = [_one_forward(running, layers, batch) for _ in range(1 + _PASSES)][1:]
    running.train(was_training)
    return [statistics.median(times) for times in zip(*passes, strict=True)]


def _one_forward(running: nn.Module, layers: Layers, batch: torch.Tensor) -> list[float]:
    tracer, hooks = Tracer(batch.device), []
    for number, (_, module) in enumerate(layers):
        hooks.append(module.register_forward_pre_hook(partial(_mark, tracer, number, "forward")))
        hooks.append(module.register_forward_hook(partial(_mark, tracer, number, "")))
    running(batch)
    for hook in hooks:
        hook.remove()
    return [span.end_s - span.start_s for span in tracer.spans()]


def _mark(tracer: Tracer, number: int, name: str, *_module: Any) -> None:
    tracer.mark(number, name)


def _layers(network: nn.Module) -> Layers:
    return [(name, module) for name, module in network.named_modules() if list(module.parameters(recurse=False))]


def _by_layer(layers: Layers, ready_s: tuple[float, ...]) -> list[float]:
    """A layer is ready with its last tensor."""
    found, at = [], 0
    for _, layer in layers:
        tensors = len(list(layer.parameters()))
        found.append(max(ready_s[at : at + tensors]))
        at += tensors
    return found
