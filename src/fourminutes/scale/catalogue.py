"""The catalogue that a purchase is planned from: devices, links, networks, each quantity with source and certainty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from fourminutes.errors import UserError
from fourminutes.plan import PlanModel
from fourminutes.plan.reading import read_mapping
from fourminutes.plan.words import did_you_mean, dotted, first_problem

DEFAULT = Path("config/hardware.yaml")

#: Number formats that rates are known in: half stands for all in which activations take two bytes.
Format = Literal["fp32", "half"]
#: Where of its interval every quantity is taken: in the middle, or where it makes training shortest, or longest.
Corner = Literal["value", "best", "worst"]


class Span(PlanModel):
    """A quantity between its ends."""

    value: float = Field(description="what is expected")
    low: float | None = Field(None, description="low end; null is the value")
    high: float | None = Field(None, description="high end; null is the value")
    certainty: Literal["confirmed", "derived", "unconfirmed"] = Field(description="how sure it is")
    source: str = Field(description="key of the catalogue's sources")
    note: str = Field("", description="what else there is to say")

    def high_is_best(self, corner: Corner) -> float:
        """The quantity at a corner, of something of which more makes training shorter."""
        return {"value": self.value, "best": self._high, "worst": self._low}[corner]

    def low_is_best(self, corner: Corner) -> float:
        """The quantity at a corner, of something of which less makes training shorter."""
        return {"value": self.value, "best": self._low, "worst": self._high}[corner]

    @property
    def _low(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def _high(self) -> float:
        return self.value if self.high is None else self.high

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if not 0 <= self._low <= self.value <= self._high:
            raise ValueError(f"value {self.value:g} does not lie between its ends {self._low:g} and {self._high:g}")
        return self


class Rate(PlanModel):
    """Training of ResNet-50 at 224 px on one device."""

    images: int = Field(ge=1, description="images a batch")
    rate: Span = Field(description="images/s")


class Device(PlanModel):
    """A device as it can be had."""

    memory_gib: float = Field(gt=0, description="memory, in GiB")
    watts: Span = Field(description="board power, in watts")
    node_devices: int = Field(8, ge=1, description="devices a node")
    inner: str = Field(description="key of the links inside a node")
    price_hour: float | None = Field(None, ge=0, description="price of one device an hour; null leaves money out")
    rates: dict[Format, Rate] = Field(min_length=1, description="rates by number format")


class LinkKind(PlanModel):
    """Links of one kind."""

    gbyte_s: Span = Field(description="bandwidth: inside a node of a ring through it, else of a node, in 10^9 bytes/s")
    latency_us: Span = Field(description="latency of one step of a ring, in microseconds")


class Where(PlanModel):
    """A source."""

    title: str
    where: str


class Catalogue(PlanModel):
    """Everything that a plan chooses from."""

    sources: dict[str, Where]
    devices: dict[str, Device] = Field(min_length=1)
    half_rate_images: Span = Field(description="with b images a device the rate is in proportion to b / (b + this)")
    other_networks: Span = Field(description="factor on rates worked out from ResNet-50's by arithmetic")
    spread: Span = Field(description="standard deviation of a device's computing from step to step, as a share")
    other_share: Span = Field(description="evaluation, start and checkpoints, as a share of the training")
    host_watts_share: Span = Field(description="power of what is around the devices, as a share of theirs")
    inner: dict[str, LinkKind] = Field(min_length=1)
    networks: dict[str, LinkKind] = Field(min_length=1)

    @model_validator(mode="after")
    def _knows_what_it_names(self) -> Self:
        for name, device in self.devices.items():
            if device.inner not in self.inner:
                raise ValueError(f"devices.{name}.inner: no links {device.inner!r}; there are {', '.join(self.inner)}")
        if unknown := {span.source for span in self.spans()} - self.sources.keys():
            raise ValueError(f"unknown sources: {', '.join(sorted(unknown))}")
        return self

    def spans(self) -> list[Span]:
        """Every quantity."""
        links = [*self.inner.values(), *self.networks.values()]
        return [
            *(device.watts for device in self.devices.values()),
            *(rate.rate for device in self.devices.values() for rate in device.rates.values()),
            *(span for link in links for span in (link.gbyte_s, link.latency_us)),
            *(self.half_rate_images, self.other_networks, self.spread, self.other_share, self.host_watts_share),
        ]


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue in the YAML file at `path`.

    Raises:
        UserError: the file is missing, is not YAML, or holds an unknown key or a wrong value.
    """
    raw = read_mapping(path, "a catalogue of hardware")
    try:
        return Catalogue.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        problem = first_problem(error, Catalogue)
        raise UserError(f"{path}: {dotted(problem.location, 'catalogue')}: {problem.words}") from error


def priced(catalogue: Catalogue, prices: Mapping[str, float]) -> Catalogue:
    """The catalogue with other prices of one device an hour.

    Raises:
        UserError: a device is unknown, or a price negative.
    """
    devices = dict(catalogue.devices)
    for name, price in prices.items():
        if name not in devices:
            raise UserError(
                f"--price {name}: no such device{did_you_mean(name, devices, 'there are: ' + ', '.join(devices))}"
            )
        if price < 0:
            raise UserError(f"--price {name}={price:g}: must not be negative")
        devices[name] = devices[name].model_copy(update={"price_hour": price})
    return catalogue.model_copy(update={"devices": devices})
