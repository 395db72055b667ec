"""A hand-made profile."""

from __future__ import annotations

from sweep_records import PROVENANCE

from fourminutes.plan import ModelPlan
from fourminutes.record import LayerProfile, ProfileRecord
from fourminutes.scale.layers import layers_of

ALEXNET = ModelPlan(name="alexnet_bn")


def profile_record(images: int = 64, precision: str = "half") -> ProfileRecord:
    """AlexNet-BN, every layer 1 ms forwards and 2 ms backwards; the last one is there first."""
    layers = layers_of(ALEXNET, 1000)
    return ProfileRecord(
        model=ALEXNET,
        classes=1000,
        images=images,
        device="NVIDIA H200",
        precision=precision,
        origin="measured",
        passes=7,
        provenance=PROVENANCE.model_copy(update={"command": "fourminutes scale profile --out profile.json"}),
        layers=tuple(
            LayerProfile(
                name=layer.name,
                kind=layer.kind,
                parameters=sum(layer.tensors),
                forward_s=1e-3,
                backward_s=2e-3,
                ready_s=2e-3 * (len(layers) - place),
                forward_quartiles_s=(0.9e-3, 1.1e-3),
                ready_quartiles_s=(1.9e-3 * (len(layers) - place), 2.2e-3 * (len(layers) - place)),
            )
            for place, layer in enumerate(layers)
        ),
    )
