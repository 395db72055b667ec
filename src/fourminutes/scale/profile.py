"""A network's profile from a device's rates, where there is no device; and any profile as a table. No torch."""

from __future__ import annotations

from tabulate import tabulate

from fourminutes.plan import ModelPlan
from fourminutes.record import LayerProfile, ProfileRecord, provenance
from fourminutes.scale.layers import Layer, Roofline, backward, layers_of, ready_after

#: Bytes of an activation or a weight.
_BYTES = {"fp32": 4, "half": 2}
_SHOWN = 10


def profile_from_rates(
    model: ModelPlan, classes: int, images: int, precision: str, operations_s: float, byte_s: float
) -> ProfileRecord:
    """Every layer takes as long as its arithmetic, or its data's way through memory, whichever is longer.

    See `Roofline` and `backward`. Where kernels' starts decide, as with few images, a device is slower.

    Args:
        model: the network.
        classes: of its last layer.
        images: a batch.
        precision: fp32, or half for activations of two bytes.
        operations_s: F, additions and multiplications the device does in a second.
        byte_s: B, bytes its memory moves in a second.
    """
    layers, device = layers_of(model, classes), Roofline(operations_s, byte_s, _BYTES[precision])
    forward_s = [device.forward_s(layer, images) for layer in layers]
    backward_s, ready_s = backward(forward_s), ready_after(forward_s)
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
    there = [f"{come_percent(record, share):.0f} % at {100 * share:.0f} %" for share in (0.25, 0.5, 0.75)]
    return f"Gradients that are there, of all parameters: {', '.join(there)} of the backward pass."


def come_percent(record: ProfileRecord, share: float) -> float:
    """How much of the gradients is there after that share of the backward pass, in percent of all parameters."""
    come = sum(layer.parameters for layer in record.layers if layer.ready_s <= share * record.backward_s)
    return 100 * come / sum(layer.parameters for layer in record.layers)


def by_arithmetic(record: ProfileRecord) -> ProfileRecord:
    """The same network and length of the passes, each layer with the share that its multiplications have.

    What predictions suppose where only the length of the passes is known; see `readiness`.
    """
    layers = layers_of(record.model, record.classes)
    macs = [layer.macs for layer in layers]
    forward, last = record.forward_s / sum(macs), record.backward_s / ready_after(macs)[0]
    times = zip([forward * cost for cost in macs], backward(macs), ready_after(macs), strict=True)
    supposed = [
        _layer_profile(layer, forward_s, last * cost, last * end)
        for layer, (forward_s, cost, end) in zip(layers, times, strict=True)
    ]
    return record.model_copy(update={"layers": tuple(supposed), "origin": "from rates", "passes": 0})
