"""The paper's cluster as a model: what follows from what is known of it, as an interval, and what that hangs on.

Nothing here is fitted to the paper's results. Every constant is a range (`p40.yaml`), drawn from evenly and at once
with all others; a point's interval holds 95 % of what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import Field
from scipy.stats import qmc

from fourminutes.facts import Claim
from fourminutes.plan import ReducePlan
from fourminutes.scale.clusters import minutes_of
from fourminutes.scale.layers import readiness
from fourminutes.scale.limits import Trained, layers, parameters
from fourminutes.scale.network import Fastest, Link, Network
from fourminutes.scale.step import ALONE_MIB, Compute, Step, simulate_step

_FILE = Path(__file__).with_name("p40.yaml")
_DRAWS, _SEED = 128, 1807

#: Gradient tensors with which the second segment begins, at 1,024 devices (the authors' article).
SEGMENTS: Mapping[Trained, int] = {"resnet50": 76, "alexnet_bn": 20}
_EPOCHS: Mapping[Trained, int] = {"resnet50": 90, "alexnet_bn": 95}
_BATCH = 65_536


class Range(Claim):
    """What a constant may be; its source is a key into those of the published numbers."""

    low: float
    high: float
    note: str
    choices: tuple[float, ...] = Field((), description="the only values, where there are few")

    @property
    def middle(self) -> float:
        """The middle of the range, or of the choices."""
        return self.choices[len(self.choices) // 2] if self.choices else (self.low + self.high) / 2

    def at(self, share: float) -> float:
        """The value so far up the range, from 0 to 1."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        return self.low + share * (self.high - self.low)


Values = Mapping[str, float]


@cache
def ranges() -> Mapping[str, Range]:
    """The constants by name."""
    read = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: Range.model_validate(one) for name, one in read.items()}


@dataclass(frozen=True)
class Point:
    """Something that the paper says, and that the model can say.

    Attributes:
        model: the network.
        devices: number of P40.
        quantity: minutes of the whole training, efficiency in percent of one device's rate, or how many times faster
            a step is than with one call of the library's ring for each tensor.
    """

    model: Trained
    devices: int
    quantity: Literal["minutes", "efficiency", "speed-up"]


@dataclass(frozen=True)
class Predicted:
    """A point's interval: 95 % of what the ranges give, and their median."""

    point: Point
    low: float
    median: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Sensitivity:
    """What a point would be with one constant at the ends of its range and all others in their middles."""

    point: Point
    constant: str
    at_low: float
    at_high: float


POINTS = (
    Point("resnet50", 2048, "minutes"),
    Point("resnet50", 1024, "minutes"),
    Point("alexnet_bn", 1024, "minutes"),
    Point("alexnet_bn", 512, "minutes"),
    Point("resnet50", 1024, "efficiency"),
    Point("resnet50", 2048, "efficiency"),
    Point("alexnet_bn", 512, "efficiency"),
    Point("alexnet_bn", 1024, "efficiency"),
    Point("resnet50", 1024, "speed-up"),
    Point("alexnet_bn", 1024, "speed-up"),
)


@cache
def predictions() -> tuple[Predicted, ...]:
    """Every point's interval, over 128 draws that fill all ranges evenly (a Latin hypercube), the same each time."""
    draws = [_drawn(row) for row in qmc.LatinHypercube(len(ranges()), seed=_SEED).random(_DRAWS)]
    found = []
    for point in POINTS:
        values = [value_of(point, draw) for draw in draws]
        low, median, high = np.quantile(values, (0.025, 0.5, 0.975)).tolist()
        found.append(Predicted(point, low, median, high))
    return tuple(found)


@cache
def sensitivities() -> tuple[Sensitivity, ...]:
    """What each constant does to each point by itself; where it does anything, the most important ones first."""
    middle = {name: one.middle for name, one in ranges().items()}
    found = []
    for point in POINTS:
        alone = [
            Sensitivity(point, name, *(value_of(point, {**middle, name: one.at(end)}) for end in (0.0, 1.0)))
            for name, one in ranges().items()
        ]
        felt = [one for one in alone if abs(one.at_high - one.at_low) > 1e-3 * abs(one.at_low)]
        found += sorted(felt, key=lambda one: -abs(one.at_high - one.at_low))
    return tuple(found)


def _drawn(row: np.ndarray) -> dict[str, float]:
    return {name: one.at(float(share)) for (name, one), share in zip(ranges().items(), row, strict=True)}


def value_of(point: Point, values: Values) -> float:
    """The point's quantity with these constants."""
    step = step_of(point.model, point.devices, values)
    match point.quantity:
        case "minutes":
            return minutes_of(_EPOCHS[point.model], _BATCH / step.total_s, values["other_share"])
        case "efficiency":
            return step.efficiency_percent
        case "speed-up":
            return baseline_of(point.model, point.devices, values).total_s / step.total_s


def step_of(model: Trained, devices: int, values: Values) -> Step:
    """A step with the paper's tricks: half precision, two segments, for each the faster of ring and hierarchy."""
    reduce = ReducePlan(wire="fp16", front_end="flat", segments=(SEGMENTS[model],), lanes=1)
    costs = Fastest(network_of(values), ("ring", "hierarchical"))
    return simulate_step(_compute(model, devices, values), reduce, costs, devices, int(values["group_ranks"]))


def baseline_of(model: Trained, devices: int, values: Values) -> Step:
    """A step with one call of the library's ring for each tensor; computing is the same."""
    wire: Literal["fp16", "fp32"] = "fp16" if values["baseline_wire_byte"] == 2 else "fp32"
    reduce = ReducePlan(wire=wire, bucket_mib=ALONE_MIB, lanes=1)
    return simulate_step(_compute(model, devices, values), reduce, network_of(values), devices)


def network_of(values: Values) -> Network:
    """Nodes behind one link each; NCCL had no trees then."""
    inner = Link(1e-6 * values["inner_latency_us"], 1e9 * values["inner_gbyte_s"])
    outer = Link(1e-6 * values["outer_latency_us"], 1e9 * values["outer_gbyte_s"])
    return Network(inner, outer, int(values["node_ranks"]))


def _compute(model: Trained, devices: int, values: Values) -> Compute:
    """One device's own part of a step, with its share of the batch."""
    images = _BATCH // devices
    both_s = images / (_images_s(model, values) * _slower(images, values))
    update_s = parameters(model) * values["update_byte_parameter"] / (1e9 * values["memory_gbyte_s"])
    # A rate of training holds the update; one worked out from arithmetic alone does not.
    passes_s = both_s - update_s if model == "resnet50" else both_s
    forward_s = values["forward_share"] * passes_s
    return Compute(
        input_s=0.0,  # the article's input pipeline works ahead
        forward_s=forward_s,
        readiness=readiness(layers(model), passes_s - forward_s),
        optimizer_s=update_s,
        spread=values["spread"],
    )


def _images_s(model: Trained, values: Values) -> float:
    """Images/s of one device with 64 images."""
    if model == "resnet50":
        return values["resnet50_images_s"]
    return 1e12 * values["alexnet_tflops"] / (3 * 2 * sum(layer.macs for layer in layers(model)))


def _slower(images: int, values: Values) -> float:
    """How much of the rate with 64 images remains with so many: b / (b + h), over the same of 64."""
    half = values["half_rate_images"]
    return images / (images + half) * (64 + half) / 64
