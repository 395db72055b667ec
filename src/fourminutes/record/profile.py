"""The record of a network's profile on a device."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan import ModelPlan
from fourminutes.record.base import Record
from fourminutes.record.provenance import Provenance


class LayerProfile(Record):
    """One layer with trained parameters."""

    name: str
    kind: str = Field(description="conv, norm or linear")
    parameters: int
    forward_s: float = Field(description="of the layer itself; median over the passes, if measured; so are the others")
    backward_s: float = Field(description="from the gradients of the layer after it to its own")
    ready_s: float = Field(description="when its gradients are there, from the begin of the backward pass")
    forward_quartiles_s: tuple[float, float] | None = Field(None, description="over the passes; null if worked out")
    ready_quartiles_s: tuple[float, float] | None = Field(None, description="likewise")


class ProfileRecord(Record):
    """Where the time of one forward and backward pass goes, and when gradients come."""

    kind: Literal["profile"] = "profile"
    model: ModelPlan
    classes: int
    images: int = Field(description="a batch")
    device: str
    precision: str
    origin: Literal["measured", "from rates"]
    rates: tuple[float, float] | None = Field(None, description="operations/s and bytes/s; null where it was measured")
    passes: int = Field(description="measured passes; 0 where it was worked out")
    provenance: Provenance
    layers: tuple[LayerProfile, ...]

    @property
    def forward_s(self) -> float:
        """Of all layers with parameters; ReLUs, pooling and additions are not in it."""
        return sum(layer.forward_s for layer in self.layers)

    @property
    def backward_s(self) -> float:
        """Until the last gradient."""
        return max(layer.ready_s for layer in self.layers)
