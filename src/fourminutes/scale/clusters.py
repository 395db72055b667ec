"""One cluster: how long a training takes on it, and what money and energy go into it. By the simulation of steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fourminutes.plan import ModelName, ModelPlan, ReducePlan
from fourminutes.scale.catalogue import Catalogue, Corner, Device, Format
from fourminutes.scale.layers import Layer, layers_of, readiness
from fourminutes.scale.limits import Schedule
from fourminutes.scale.network import Link, Network
from fourminutes.scale.step import Compute, Step, simulate_step

IMAGES, CLASSES = 1_281_167, 1000
#: Of a step, what is the forward pass: backward passes have twice its multiplications.
_FORWARD_SHARE = 1 / 3
_REFERENCE: ModelName = "resnet50"
#: Bucket sizes that are tried, in MiB of fp32.
BUCKETS_MIB = (4.0, 25.0, 1e6)
_CORNERS: tuple[Corner, ...] = ("value", "best", "worst")


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind, in nodes behind one network."""

    device: str
    count: int
    network: str


@dataclass(frozen=True)
class Estimate:
    """A number between its ends."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """All three times `factor`."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Training:
    """A training on a cluster, predicted.

    Attributes:
        cluster: on what.
        schedule: batch and epochs.
        images: of a device in one pass.
        passes: forward and backward passes a step, which add up to the batch.
        bucket_mib: fusion that was the fastest of those tried.
        minutes: of the whole training.
        efficiency_percent: of a step, against as many devices that wait for nobody.
        images_s: of the cluster.
        money: of the training, in the currency of the prices; None without a price.
        kwh: of the training.
    """

    cluster: Cluster
    schedule: Schedule
    images: int
    passes: int
    bucket_mib: float
    minutes: Estimate
    efficiency_percent: Estimate
    images_s: Estimate
    money: Estimate | None
    kwh: Estimate


@dataclass(frozen=True)
class Workload:
    """What is trained, and in which number format."""

    model: ModelName
    form: Format


def train_on(cluster: Cluster, schedule: Schedule, images: int, work: Workload, catalogue: Catalogue) -> Training:
    """The training that a cluster does with `images` a device and pass.

    The interval's ends are the simulation with every quantity at the end that makes training shorter, and with every
    one at the other end: wider than chance would make it, since all are hardly wrong in the same direction.
    """
    passes = -(-schedule.batch // (images * cluster.count))
    bucket_mib = min(
        BUCKETS_MIB, key=lambda size: _step(cluster, images, passes, work, catalogue, "value", size).total_s
    )
    steps = {corner: _step(cluster, images, passes, work, catalogue, corner, bucket_mib) for corner in _CORNERS}
    batch = images * passes * cluster.count
    seconds = {
        corner: schedule.epochs * IMAGES / batch * step.total_s * (1 + catalogue.other_share.low_is_best(corner))
        for corner, step in steps.items()
    }
    device = catalogue.devices[cluster.device]
    minutes = Estimate(seconds["value"] / 60, seconds["best"] / 60, seconds["worst"] / 60)
    return Training(
        cluster=cluster,
        schedule=schedule,
        images=images,
        passes=passes,
        bucket_mib=bucket_mib,
        minutes=minutes,
        efficiency_percent=_between(*(steps[corner].efficiency_percent for corner in _CORNERS)),
        images_s=_between(*(batch / steps[corner].total_s for corner in _CORNERS)),
        money=None if device.price_hour is None else minutes.times(device.price_hour * cluster.count / 60),
        kwh=_kwh(device, cluster.count, minutes, catalogue),
    )


def _between(value: float, one: float, other: float) -> Estimate:
    return Estimate(value, min(value, one, other), max(value, one, other))


def _kwh(device: Device, count: int, minutes: Estimate, catalogue: Catalogue) -> Estimate:
    """Board power and what is around it, over the training."""

    def of(corner: Corner, length: float) -> float:
        watts = device.watts.low_is_best(corner) * (1 + catalogue.host_watts_share.low_is_best(corner))
        return watts * count / 1000 * length / 60

    return Estimate(of("value", minutes.value), of("best", minutes.low), of("worst", minutes.high))


def _step(
    cluster: Cluster,
    images: int,
    passes: int,
    work: Workload,
    catalogue: Catalogue,
    corner: Corner,
    bucket_mib: float,
) -> Step:
    compute = compute_on(cluster.device, images, passes, work, catalogue, corner)
    network = network_of(cluster, catalogue, corner)
    return simulate_step(compute, reduce_of(work, bucket_mib), network, cluster.count)


def reduce_of(work: Workload, bucket_mib: float) -> ReducePlan:
    """The library's all-reduce over fused gradients, in half precision where the training is."""
    return ReducePlan(wire="fp32" if work.form == "fp32" else "fp16", bucket_mib=bucket_mib, lanes=1)


def compute_on(device: str, images: int, passes: int, work: Workload, catalogue: Catalogue, corner: Corner) -> Compute:
    """One device's own part of a step of so many passes; the update is in the rate."""
    pass_s = images / rate_of(device, images, work, catalogue, corner)
    forward_s = _FORWARD_SHARE * pass_s
    return Compute(
        input_s=0.0,
        forward_s=forward_s + (passes - 1) * pass_s,
        readiness=readiness(layers(work.model), pass_s - forward_s),
        optimizer_s=0.0,
        spread=catalogue.spread.low_is_best(corner),
    )


def rate_of(device: str, images: int, work: Workload, catalogue: Catalogue, corner: Corner) -> float:
    """Images/s of one device with so many images a pass: R b/(b+h) (n+h)/n, with R measured at n images.

    Of a network that was not measured it follows from the multiplications of both, times a factor.
    """
    known = catalogue.devices[device].rates[work.form]
    half = catalogue.half_rate_images.low_is_best(corner)
    rate = known.rate.high_is_best(corner) * images / (images + half) * (known.images + half) / known.images
    if work.model == _REFERENCE:
        return rate
    return rate * _macs(_REFERENCE) / _macs(work.model) * catalogue.other_networks.high_is_best(corner)


def network_of(cluster: Cluster, catalogue: Catalogue, corner: Corner) -> Network:
    """The two levels of links; a library of today has trees."""
    device = catalogue.devices[cluster.device]
    inner, outer = catalogue.inner[device.inner], catalogue.networks[cluster.network]

    def link(kind: object) -> Link:
        return Link(
            1e-6 * kind.latency_us.low_is_best(corner),  # type: ignore[attr-defined]
            1e9 * kind.gbyte_s.high_is_best(corner),  # type: ignore[attr-defined]
        )

    return Network(link(inner), link(outer), device.node_devices, has_trees=True)


@cache
def layers(model: ModelName) -> tuple[Layer, ...]:
    """The whole network, on the 1,000 classes of ImageNet."""
    return layers_of(ModelPlan(name=model), CLASSES)


@cache
def _macs(model: ModelName) -> float:
    return sum(layer.macs for layer in layers(model))
