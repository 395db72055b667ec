"""What a cluster may be made of, each figure with its range, its source and how sure it is (`config/hardware.yaml`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fourminutes.errors import UserError
from fourminutes.facts import Certainty, Fact, Source
from fourminutes.plan.reading import read_mapping
from fourminutes.plan.words import did_you_mean, dotted, first_problem

CATALOGUE = Path("config/hardware.yaml")

#: Which end of every range: `slow` takes what makes training longest, `fast` what makes it shortest.
End = Literal["slow", "middle", "fast"]
ENDS: tuple[End, End, End] = ("fast", "middle", "slow")
Precision = Literal["half", "fp32"]
Basis = Literal["measured", "published", "predicted", "remembered"]


class Figure(Fact):
    """A fact with the range that it lies in; without one it is taken as exact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float = Field(ge=0)
    low: float | None = Field(None, ge=0)
    high: float | None = None
    note: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.least <= self.value <= self.most:
            raise ValueError(f"value {self.value:g} is not within low {self.least:g} and high {self.most:g}")
        return self

    @property
    def least(self) -> float:
        """The low end."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The high end."""
        return self.value if self.high is None else self.high

    @property
    def basis(self) -> Basis:
        """Where it comes from, in a word: this project's own measurement, a publication, arithmetic, memory."""
        if self.certainty is Certainty.CONFIRMED:
            return "measured" if self.source == "OWN" else "published"
        return "predicted" if self.certainty is Certainty.DERIVED else "remembered"

    def at(self, end: End, *, more_is_faster: bool = True) -> float:
        """The value at that end of the range."""
        if end == "middle":
            return self.value
        return self.most if (end == "fast") == more_is_faster else self.least


class Positive(Figure):
    """A figure that something is divided by."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.least <= 0:
            raise ValueError("must be greater than 0, at its low end too")
        return self


class Rate(Positive):
    """Images/s of training ResNet-50, and the images a device that they were measured with."""

    batch: int = Field(gt=0)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InnerLink(_Form):
    """From device to device inside a node."""

    gbyte_s: Positive = Field(description="10^9 bytes/s a direction, of each device")
    latency_us: Figure


class OuterLink(_Form):
    """From node to node."""

    gbit_s: float = Field(gt=0, description="of a node, as it is sold")
    share: Positive = Field(description="of it that messages get")
    latency_us: Figure
    usual: bool = Field(True, description="looked at without being named")


class Node(_Form):
    """What devices are put into."""

    devices: int = Field(gt=0)
    link: str
    overhead_w: Figure = Field(description="power of the node beside its devices")


class Device(_Form):
    """An accelerator; rates are those of ResNet-50."""

    node: str
    price_hour: float | None = Field(None, ge=0, description="of one device, in the user's currency")
    memory_gib: Positive
    fp32_tflops: Positive
    half_tflops: Positive
    memory_gbyte_s: Positive
    board_w: Figure
    half_rate_images: Figure = Field(description="h: with b images a device the rate goes as b / (b + h)")
    half: Rate | None = None
    fp32: Rate | None = None

    def rate(self, precision: Precision) -> Rate | None:
        """Its images/s of ResNet-50, where they are known."""
        return self.half if precision == "half" else self.fp32

    def tflops(self, precision: Precision) -> float:
        """Its arithmetic by data sheet."""
        return (self.half_tflops if precision == "half" else self.fp32_tflops).value


class Assumptions(_Form):
    """What holds for all clusters; see the file's notes."""

    spread: Figure
    other_share: Figure
    forward_share: Positive
    update_byte_parameter: Figure
    memory_share: Positive
    reserve_gib: Figure
    load_share: Figure
    alexnet_factor: Positive


class Catalogue(_Form):
    """The whole file."""

    sources: dict[str, Source]
    assumptions: Assumptions
    links: dict[str, InnerLink]
    networks: dict[str, OuterLink] = Field(min_length=1)
    nodes: dict[str, Node]
    devices: dict[str, Device] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        for name, device in self.devices.items():
            _check(f"devices.{name}.node", device.node, self.nodes)
        for name, node in self.nodes.items():
            _check(f"nodes.{name}.link", node.link, self.links)
        for place, figure in figures(self):
            _check(f"{place}.source", figure.source, self.sources)
        return self


def figures(form: BaseModel, place: str = "") -> list[tuple[str, Figure]]:
    """Every figure within, by its place in the file."""
    found: list[tuple[str, Figure]] = []
    for name in type(form).model_fields:
        value = getattr(form, name)
        for key, one in value.items() if isinstance(value, dict) else [("", value)]:
            where = ".".join(part for part in (place, name, key) if part)
            if isinstance(one, Figure):
                found.append((where, one))
            elif isinstance(one, BaseModel):
                found += figures(one, where)
    return found


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue at `path`.

    Raises:
        UserError: the file is missing, is not YAML, or not of this form; names the key.
    """
    raw = read_mapping(path, "a catalogue of hardware")
    try:
        return Catalogue.model_validate(raw)
    except ValidationError as error:
        problem = first_problem(error, Catalogue)
        words = problem.words.replace("workflow/schemas/plan.md lists all keys", f"{CATALOGUE} shows all keys")
        raise UserError(f"{path}: {dotted(problem.location, 'file')}: {words}") from error


def known(kind: str, name: str, names: Collection[str]) -> str:
    """`name`, if it is one of the catalogue's; whether letters are large does not matter.

    Raises:
        UserError: it isn't.
    """
    for each in names:
        if each.lower() == name.lower():
            return each
    lower = {each.lower(): each for each in names}
    hint = did_you_mean(name.lower(), lower, f"there are {', '.join(names)}")
    for each, written in lower.items():
        hint = hint.replace(repr(each), repr(written))
    raise UserError(f"{kind} {name!r}: is not known{hint}")


def _check(place: str, name: str, names: dict[str, Any]) -> None:
    if name not in names:
        there = f"there are {', '.join(names)}"
        raise ValueError(f"{place}: {name!r} is not in the file{did_you_mean(name, names, there)}")
