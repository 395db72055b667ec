"""A network's profile from a device's rates, where there is no device; and any profile as a table. No torch."""

from __future__ import annotations

from itertools import accumulate

from tabulate import tabulate

from fourminutes.plan import ModelPlan
from fourminutes.record import LayerProfile, ProfileRecord, provenance
from fourminutes.scale.layers import Layer, layers_of

#: Bytes of an activation and operations of a multiplication with addition.
_BYTES = {"fp32": 4, "half": 2}
_OPERATIONS = 2
_SHOWN = 10


def profile_from_rates(
    model: ModelPlan, classes: int, images: int, precision: str, operations_s: float, byte_s: float
) -> ProfileRecord:
    """Every layer takes as long as its arithmetic, or as its activations' way through memory, whichever is longer.

    t = max(2 macs / F, moved bytes / B) of one image, times the images; the backward pass twice that, once for the
    first layer, which has no gradient of its input. A roofline: no kernel's start, no cache, no weights' traffic.

    Args:
        model: the network.
        classes: of its last layer.
        images: a batch.
        precision: fp32, or half for activations of two bytes.
        operations_s: F, additions and multiplications the device does in a second.
        byte_s: B, bytes its memory moves in a second.
    """
    layers = layers_of(model, classes)
    forward_s = [
        images * max(_OPERATIONS * layer.macs / operations_s, _BYTES[precision] * layer.moved / byte_s)
        for layer in layers
    ]
    backward_s = [seconds * (1 if number == 0 else 2) for number, seconds in enumerate(forward_s)]
    ready_s = list(accumulate(reversed(backward_s)))[::-1]
    return ProfileRecord(
        model=model,
        classes=classes,
        images=images,
        device=f"{operations_s / 1e12:g} TFLOP/s, {byte_s / 1e9:g} GB/s",
        precision=precision,
        origin="from rates",
        rates=(operations_s, byte_s),
        passes=0,
        provenance=provenance(),
        layers=tuple(map(_layer_profile, layers, forward_s, backward_s, ready_s)),
    )


def _layer_profile(layer: Layer, forward_s: float, backward_s: float, ready_s: float) -> LayerProfile:
    """One layer of a profile."""
    return LayerProfile(
        name=layer.name,
        kind=layer.kind,
        parameters=sum(layer.tensors),
        forward_s=forward_s,
        backward_s=backward_s,
        ready_s=ready_s,
    )


def profile_table(record: ProfileRecord) -> str:
    """The slowest layers, and how much of the gradients is there at each quarter of the backward pass."""
    slowest = sorted(record.layers, key=lambda layer: -(layer.forward_s + layer.backward_s))[:_SHOWN]
    rows = [
        (
            layer.name,
            layer.kind,
            f"{layer.parameters:,}",
            f"{layer.forward_s * 1e3:.3f}",
            f"{layer.backward_s * 1e3:.3f}",
            f"{layer.ready_s * 1e3:.3f}",
        )
        for layer in slowest
    ]
    head = (
        f"# {record.model.name}, {record.images} images of {record.model.image_px} px, {record.precision}, "
        f"{record.device}, {record.origin}\n# forward {record.forward_s * 1e3:.2f} ms, backward "
        f"{record.backward_s * 1e3:.2f} ms"
    )
    table = tabulate(
        rows,
        headers=["slowest layers", "kind", "parameters", "forward ms", "backward ms", "ready ms"],
        disable_numparse=True,
    )
    return f"{head}\n\n{table}\n\n{_readiness(record)}"


def _readiness(record: ProfileRecord) -> str:
    whole = sum(layer.parameters for layer in record.layers)
    there = [f"{100 * _come(record, share) / whole:.0f} % at {100 * share:.0f} %" for share in (0.25, 0.5, 0.75)]
    return f"Gradients that are there, of all parameters: {', '.join(there)} of the backward pass."


def _come(record: ProfileRecord, share: float) -> int:
    """Parameters whose gradients are there after that share of the backward pass."""
    return sum(layer.parameters for layer in record.layers if layer.ready_s <= share * record.backward_s)
