"""The numbers that others published, each with its certainty and source (`published.yaml` beside this file)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, model_validator

from fourminutes.facts import Certainty, Fact, Form, Source, Text

_FILE = Path(__file__).with_name("published.yaml")
#: The plan whose runs a row may name to be filled by.
FILLING_PLAN = "ilsvrc2012"


class _Row(Form):
    """A row whose certainty and source hold for every claim in it that does not bring its own."""

    certainty: Certainty
    source: str
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        own = {key: row[key] for key in ("certainty", "source") if key in row}
        return {key: _as_claim(value, own) if key in _claim_fields(cls) else value for key, value in row.items()}

    def claims(self) -> tuple[Fact | Text, ...]:
        """Every claim of the row."""
        return tuple(value for name in type(self).model_fields if isinstance(value := getattr(self, name), Fact | Text))

    def cited(self) -> str:
        """The keys of all sources that the row was read in, its main one first, parted by commas."""
        read = (claim.source for claim in self.claims() if claim.certainty is not Certainty.DERIVED)
        return ", ".join(dict.fromkeys((self.source, *read)))


def _claim_fields(row: type[BaseModel]) -> set[str]:
    kinds = (Fact, Fact | None, Text, Text | None)
    return {name for name, field in row.model_fields.items() if field.annotation in kinds}


def _as_claim(value: Any, own: dict[str, Any]) -> Any:
    return value if value is None or isinstance(value, dict) else {"value": value, **own}


class Headline(_Row):
    """A result that the paper is known for."""

    model: str
    batch: Fact = Field(description="images a step")
    epochs: Fact | None = None
    accelerator: str | None = None
    accelerators: Fact | None = None
    minutes: Fact | None = None
    top1_percent: Fact | None = None
    images_per_s: Fact | None = None


class Speedup(_Row):
    """Training faster than with the library's all-reduce alone."""

    model: str
    accelerators: int
    factor: Fact


class Match(Form):
    """Which of the user's runs does what an ablation row describes; the batch is the row's."""

    model: str
    optimizer: str
    no_decay: bool = Field(description="whether bias and batch norm are spared the weight decay")
    bn_after_pool5: bool = Field(True, description="AlexNet: whether a batch norm follows the last pooling")


class Fill(Form):
    """The run whose record would fill a row's empty cells."""

    recipe: str = Field(description="recipe of config/recipes.yaml")
    run: str | None = Field(None, description="run that the plan ilsvrc2012 has of it already")
    changes: dict[str, str | int | bool | tuple[str, ...]] = Field(
        default_factory=dict, description="settings other than the recipe's, by their path"
    )

    def __str__(self) -> str:
        """As it is told below a table."""
        if self.run:
            return f"run {self.run} of plan {FILLING_PLAN}"
        changes = ", ".join(f"{path}: {_yaml(value)}" for path, value in self.changes.items())
        return f"a run by recipe {self.recipe}{f' with {changes}' if changes else ''}"


def _yaml(value: object) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


class Ablation(_Row):
    """One technique, on or off."""

    model: str
    change: str
    top1_percent: Fact
    batch: Fact
    epochs: Fact | None = None
    match: Match
    fill: Fill


class HalfPrecision(_Row):
    """One network's rate in single and in half precision."""

    model: str
    accelerator: str
    batch: Fact = Field(description="images a step and device")
    fp32_images_per_s: Fact
    half_images_per_s: Fact
    ratio: Fact


class Curve(Form):
    """One line of the scalability figure."""

    name: str
    images_per_s: tuple[float, ...]


class Scalability(Form):
    """The paper's scalability figure, read off its pixels; network, batch and precision are not stated there."""

    certainty: Certainty
    source: str
    accelerators: tuple[int, ...]
    reading_error_images_per_s: float
    curves: tuple[Curve, ...] = Field(min_length=2, description="the ideal first")

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if any(len(curve.images_per_s) != len(self.accelerators) for curve in self.curves):
            raise ValueError("every curve needs one value per number of accelerators")
        return self


class Efficiency(_Row):
    """Throughput against that of as many single devices."""

    model: str
    accelerators: int
    percent: Fact


class StepCount(_Row):
    """Transfers one after another in an all-reduce."""

    accelerators: int
    group: int
    ring: Fact
    hierarchical: Fact


class System(_Row):
    """Someone's ImageNet training."""

    who: str
    model: str
    group: Literal["compared", "paper", "after", "mlperf"]
    year: int | None = None
    batch: Text | None = Field(None, description="as the source writes it")
    hardware: Text | None = None
    accelerators: Fact | None = None
    minutes: Fact | None = None
    top1_percent: Fact | None = None


class Published(Form):
    """Everything that the tables and figures need from others."""

    sources: dict[str, Source]
    headline: tuple[Headline, ...]
    speedups: tuple[Speedup, ...]
    ablations: tuple[Ablation, ...]
    half_precision: HalfPrecision
    scalability: Scalability
    efficiencies: tuple[Efficiency, ...]
    steps: tuple[StepCount, ...]
    systems: tuple[System, ...]

    def rows(self) -> tuple[_Row, ...]:
        """All rows of all tables."""
        return (
            *self.headline,
            *self.speedups,
            *self.ablations,
            self.half_precision,
            *self.efficiencies,
            *self.steps,
            *self.systems,
        )

    @model_validator(mode="after")
    def _known_sources(self) -> Self:
        named = {row.source for row in self.rows()} | {self.scalability.source}
        named |= {claim.source for row in self.rows() for claim in row.claims()}
        if unknown := named - self.sources.keys():
            raise ValueError(f"unknown sources: {', '.join(sorted(unknown))}")
        return self


@cache
def published() -> Published:
    """The published numbers, read and checked once."""
    return Published.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
