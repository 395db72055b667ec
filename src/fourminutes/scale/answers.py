"""What the planner answers, as a record."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.record.base import Record
from fourminutes.scale.catalogue import Basis
from fourminutes.scale.clusters import Ranged


class Row(Record):
    """One cluster with its best batch; everything with an interval is predicted."""

    device: str
    devices: int
    nodes: int
    network: str | None = Field(description="between nodes; null where there is one node")
    batch: int = Field(description="images a step")
    per_device: int
    memory_gib: float = Field(description="of a device, predicted")
    epochs: float
    recipe: str = Field(description="whose number of epochs it is")
    bucket_mib: float = Field(description="size up to which gradients are fused, in MiB of fp32")
    step_s: Ranged
    images_per_s: Ranged
    efficiency_percent: Ranged
    minutes: Ranged
    money: Ranged | None = Field(description="in the currency of the price; null without one")
    energy_kwh: Ranged
    reaches: Literal["surely", "likely", "perhaps", "no"] = Field(
        description="surely: at the slow end too; likely: with every range's value; perhaps: at the fast end only"
    )


class Refused(Record):
    """Clusters that were left out, and why; the smallest number of devices of those with this reason."""

    device: str
    devices: int
    reason: str


class Knee(Record):
    """Where doubling stops to pay."""

    device: str
    network: str
    devices: int = Field(description="from here one more doubling makes training less than 1.6 times as fast")
    minutes: float
    doubled_minutes: float | None = Field(description="with twice the devices; null where there can't be as many")
    speedup: float | None = Field(description="of that doubling")
    cost_factor: float | None = Field(description="device hours of the doubled cluster over those of this one")
    why: str


class RateUsed(Record):
    """The rate that a device's rows stand on: images/s of the network, with `batch` images on one device."""

    device: str
    batch: int
    value: float
    low: float
    high: float
    basis: Basis
    certainty: str
    source: str
    note: str


class Answer(Record):
    """Which clusters reach the goal."""

    kind: Literal["cluster_plan"] = "cluster_plan"
    model: str
    precision: str
    target_minutes: float
    catalogue: str
    rates: tuple[RateUsed, ...]
    rows: tuple[Row, ...] = Field(description="every cluster that was looked at")
    refused: tuple[Refused, ...]
    knees: tuple[Knee, ...]
    assumptions: tuple[str, ...]
