"""One cluster's step, time, money and energy, at the ends of all ranges. No torch.

The interval of an answer is what comes out with every range at its slow end at once, and at its fast end at once: wider
than any mixture of them, since a cluster is hardly ever bad luck in everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from fourminutes.comm.tuner import Readiness
from fourminutes.plan import ReducePlan
from fourminutes.record.base import Record
from fourminutes.scale.catalogue import ENDS, Catalogue, End, Precision, Rate
from fourminutes.scale.layers import Roofline, readiness
from fourminutes.scale.limits import ELEMENT_BYTES, Trained, layers, parameters
from fourminutes.scale.network import Fastest, Link, Network
from fourminutes.scale.step import Compute, Step, simulate_step

TRAIN_IMAGES = 1_281_167


@dataclass(frozen=True)
class Cluster:
    """So many devices; `network` is none where all are in one node."""

    device: str
    devices: int
    network: str | None


@dataclass(frozen=True)
class Task:
    """What is trained: `epochs` with `batch` images a step, buckets up to `bucket_mib` of fp32."""

    model: Trained
    precision: Precision
    batch: int
    epochs: float
    bucket_mib: float = 25.0


class Ranged(Record):
    """A predicted number, and what it is at the fast and at the slow end of all ranges."""

    value: float
    low: float
    high: float


def step_of(catalogue: Catalogue, cluster: Cluster, task: Task, end: End, *, alike: bool = False) -> Step:
    """The step that the simulator gives, in groups of a node's devices; `alike`: as if no device were ever late."""
    images = task.batch / cluster.devices
    reduce = ReducePlan(wire="fp16" if task.precision == "half" else "fp32", bucket_mib=task.bucket_mib, lanes=1)
    costs = Fastest(network_of(catalogue, cluster, end), ("ring", "hierarchical", "torus"))
    compute = compute_on(catalogue, cluster.device, task, images, end)
    compute = replace(compute, spread=0.0) if alike else compute
    return simulate_step(compute, reduce, costs, cluster.devices, costs.network.node_ranks)


def network_of(catalogue: Catalogue, cluster: Cluster, end: End) -> Network:
    """Its links, in bytes/s and seconds; the library has trees, as NCCL's has."""
    node = catalogue.nodes[catalogue.devices[cluster.device].node]
    inside = catalogue.links[node.link]
    inner = Link(1e-6 * inside.latency_us.at(end, more_is_faster=False), 1e9 * inside.gbyte_s.at(end))
    if cluster.network is None:
        return Network(inner, inner, node.devices, has_trees=True)
    between = catalogue.networks[cluster.network]
    latency_s = 1e-6 * between.latency_us.at(end, more_is_faster=False)
    return Network(inner, Link(latency_s, 1e9 / 8 * between.gbit_s * between.share.at(end)), node.devices, True)


def compute_on(catalogue: Catalogue, device: str, task: Task, images: float, end: End) -> Compute:
    """One device's own part of a step with `images` images; forward and backward pass in seconds.

    The input pipeline is taken to keep up. A rate of ResNet-50 holds the update; AlexNet's, worked out from arithmetic
    and memory traffic, does not.
    """
    sure, memory = catalogue.assumptions, catalogue.devices[device].memory_gbyte_s
    both_s = images / images_per_s(catalogue, device, task.model, task.precision, images, end)
    update_bytes = parameters(task.model) * sure.update_byte_parameter.at(end, more_is_faster=False)
    update_s = update_bytes / (1e9 * memory.at(end) * sure.memory_share.at(end))
    passes_s = max(both_s - update_s, both_s / 2) if task.model == "resnet50" else both_s
    # A shorter forward pass leaves more of the backward pass to hide communication behind.
    forward_s = passes_s * sure.forward_share.at(end, more_is_faster=False)
    return Compute(
        input_s=0.0,
        forward_s=forward_s,
        readiness=_in_time(task.model, passes_s - forward_s),
        optimizer_s=update_s,
        spread=sure.spread.at(end, more_is_faster=False),
    )


def _in_time(model: Trained, backward_s: float) -> Readiness:
    """When each gradient is ready, in a backward pass of that length."""
    whole = _of_one_second(model)
    return Readiness(whole.tensor_bytes, tuple(backward_s * share for share in whole.ready_s))


@cache
def _of_one_second(model: Trained) -> Readiness:
    return readiness(layers(model), 1.0)


def images_per_s(
    catalogue: Catalogue, device: str, model: Trained, precision: Precision, images: float, end: End
) -> float:
    """A device's rate with b images: R(b0) x b / (b + h) over b0 / (b0 + h).

    AlexNet's R is ResNet-50's times the ratio of their rooflines, and `alexnet_factor`.

    Raises:
        ValueError: the device has no rate in that precision.
    """
    one = catalogue.devices[device]
    rate = one.rate(precision)
    if rate is None:
        raise ValueError(f"{device} has no rate in {precision}")
    # Where a rate was measured with more images, a larger h slows; with fewer, it speeds up.
    half = one.half_rate_images.at(end, more_is_faster=images > rate.batch)
    return (
        _base(catalogue, device, model, precision, rate, end)
        * (images / (images + half))
        * ((rate.batch + half) / rate.batch)
    )


def _base(catalogue: Catalogue, device: str, model: Trained, precision: Precision, rate: Rate, end: End) -> float:
    if model == "resnet50":
        return rate.at(end)
    one = catalogue.devices[device]
    roofline = Roofline(1e12 * one.tflops(precision), 1e9 * one.memory_gbyte_s.value, ELEMENT_BYTES[precision])
    bounds = [_forward_s(name, roofline, rate.batch) for name in _BOTH]
    return rate.at(end) * catalogue.assumptions.alexnet_factor.at(end) * bounds[0] / bounds[1]


_BOTH: tuple[Trained, Trained] = ("resnet50", "alexnet_bn")


@cache
def _forward_s(model: Trained, roofline: Roofline, images: float) -> float:
    """Forward pass of so many images at best."""
    return sum(roofline.forward_s(layer, images) for layer in layers(model))


def minutes_of(epochs: float, images_s: float, other_share: float) -> float:
    """Training time: epochs x 1,281,167 / (images/s), and evaluation and the like as a share of it."""
    return epochs * TRAIN_IMAGES / images_s * (1 + other_share) / 60


def money_of(price_hour: float, devices: int, minutes: float) -> float:
    """Price of a device and hour x devices x hours."""
    return price_hour * devices * minutes / 60


def energy_kwh(device_w: float, devices: int, node_w: float, nodes: int, minutes: float) -> float:
    """(devices x W of each + nodes x W of each beside them) x hours, in kWh."""
    return (device_w * devices + node_w * nodes) * minutes / 60 / 1000


def ranged(value_at: Callable[[End], float]) -> Ranged:
    """A number at all ends."""
    fast, middle, slow = (value_at(end) for end in ENDS)
    return Ranged(value=middle, low=min(fast, middle, slow), high=max(fast, middle, slow))


def nodes_of(catalogue: Catalogue, cluster: Cluster) -> int:
    """Nodes that the devices fill."""
    return math.ceil(cluster.devices / catalogue.nodes[catalogue.devices[cluster.device].node].devices)


def power_kwh(catalogue: Catalogue, cluster: Cluster, minutes: float, end: End) -> float:
    """Energy of a training of so many minutes, with power at that end."""
    device = catalogue.devices[cluster.device]
    watts = device.board_w.at(end, more_is_faster=False) * catalogue.assumptions.load_share.at(
        end, more_is_faster=False
    )
    overhead_w = catalogue.nodes[device.node].overhead_w.at(end, more_is_faster=False)
    return energy_kwh(watts, cluster.devices, overhead_w, nodes_of(catalogue, cluster), minutes)
