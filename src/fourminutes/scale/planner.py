"""Which clusters train a network in a given time: devices, their number by doubling, networks. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fourminutes.scale.answers import Answer, RateUsed, Refused, Row
from fourminutes.scale.catalogue import Catalogue, Precision, figures
from fourminutes.scale.clusters import (
    Cluster,
    Task,
    images_per_s,
    minutes_of,
    money_of,
    nodes_of,
    power_kwh,
    ranged,
    step_of,
)
from fourminutes.scale.knee import knees_of
from fourminutes.scale.limits import LEAST_IMAGES, Budget, Trained, memory_gib, most_images

# Fusion that is tried, in MiB of fp32: some buckets to overlap, or all gradients in one.
_BUCKETS_MIB = (8.0, 32.0, 1024.0)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        model: the network.
        precision: of training.
        target_minutes: the goal.
        devices: names of devices to look at.
        networks: names of networks, likewise.
        max_devices: the largest number of devices.
        budgets: batches and epochs to choose among.
        prices: of a device and hour, by device.
        largest_is: what bounds the largest batch, in words.
    """

    model: Trained
    precision: Precision
    target_minutes: float
    devices: tuple[str, ...]
    networks: tuple[str, ...]
    max_devices: int
    budgets: tuple[Budget, ...]
    prices: Mapping[str, float]
    largest_is: str = "with a recipe"


def plan_clusters(catalogue: Catalogue, question: Question, where: str) -> Answer:
    """Every cluster with the batch and the fusion that train it soonest; `where` names the catalogue.

    Clusters that cannot be are refused with the reason.
    """
    rows: list[Row] = []
    refused: list[Refused] = []
    for device in question.devices:
        reason = _refused_at_all(catalogue, question, device)
        if reason:
            refused.append(Refused(device=device, devices=1, reason=reason))
            continue
        for devices in _doubled(question.max_devices):
            if reason := _refused(catalogue, question, device, devices):
                refused.append(Refused(device=device, devices=devices, reason=reason))
                break
            rows += [row_of(catalogue, question, one) for one in _clusters(catalogue, question, device, devices)]
    return Answer(
        model=question.model,
        precision=question.precision,
        target_minutes=question.target_minutes,
        catalogue=where,
        rates=tuple(_rates(catalogue, question)),
        rows=tuple(rows),
        refused=tuple(refused),
        knees=knees_of(rows),
        assumptions=_assumptions(catalogue, question),
    )


def row_of(catalogue: Catalogue, question: Question, cluster: Cluster) -> Row:
    """The cluster with what makes training shortest, by the middle of every range."""
    tried = [
        (_minutes(catalogue, cluster, task), task, budget) for task, budget in _tasks(catalogue, question, cluster)
    ]
    _, task, budget = min(tried, key=lambda one: one[0])
    steps = {end: step_of(catalogue, cluster, task, end) for end in ("fast", "middle", "slow")}
    other = catalogue.assumptions.other_share
    rate = ranged(lambda end: task.batch / steps[end].total_s)
    minutes = ranged(
        lambda end: minutes_of(task.epochs, task.batch / steps[end].total_s, other.at(end, more_is_faster=False))
    )
    by_end = {"fast": minutes.low, "middle": minutes.value, "slow": minutes.high}
    price = question.prices.get(cluster.device)
    images = task.batch // cluster.devices
    return Row(
        device=cluster.device,
        devices=cluster.devices,
        nodes=nodes_of(catalogue, cluster),
        network=cluster.network,
        batch=task.batch,
        per_device=images,
        memory_gib=memory_gib(question.model, question.precision, images, catalogue.assumptions.reserve_gib.value),
        epochs=task.epochs,
        recipe=budget.recipe,
        bucket_mib=task.bucket_mib,
        step_s=ranged(lambda end: steps[end].total_s),
        images_per_s=rate,
        efficiency_percent=ranged(lambda end: steps[end].efficiency_percent),
        minutes=minutes,
        money=None if price is None else ranged(lambda end: money_of(price, cluster.devices, by_end[end])),
        energy_kwh=ranged(lambda end: power_kwh(catalogue, cluster, by_end[end], end)),
        reaches=_reaches(by_end, question.target_minutes),
    )


def _reaches(minutes: Mapping[str, float], target: float) -> str:
    words = (("slow", "surely"), ("middle", "likely"), ("fast", "perhaps"))
    return next((word for end, word in words if minutes[end] <= target), "no")


def _minutes(catalogue: Catalogue, cluster: Cluster, task: Task) -> float:
    """For choosing among tasks alone: lateness hits all of them alike, and costs most of the time to work out."""
    return minutes_of(task.epochs, task.batch / step_of(catalogue, cluster, task, "middle", alike=True).total_s, 0)


def _tasks(catalogue: Catalogue, question: Question, cluster: Cluster) -> Iterator[tuple[Task, Budget]]:
    """Batches that fit, each with every fusion; of batches for the same recipe the largest."""
    for budget, images in _fitting(catalogue, question, cluster.device, cluster.devices):
        batch = images * cluster.devices
        for bucket_mib in _BUCKETS_MIB if cluster.devices > 1 else _BUCKETS_MIB[-1:]:
            yield Task(question.model, question.precision, batch, budget.epochs, bucket_mib), budget


def _fitting(catalogue: Catalogue, question: Question, device: str, devices: int) -> Iterator[tuple[Budget, int]]:
    """Images a device for each recipe, the most that memory and the recipe's batch let through."""
    most = most_images(catalogue, device, question.model, question.precision)
    seen = set()
    for budget in question.budgets:
        images = min(most, budget.batch // devices)
        # A batch that a recipe with fewer epochs has already covered gains nothing from more epochs.
        if images >= LEAST_IMAGES and images not in seen:
            seen.add(images)
            yield budget, images


def _clusters(catalogue: Catalogue, question: Question, device: str, devices: int) -> Iterator[Cluster]:
    if devices <= catalogue.nodes[catalogue.devices[device].node].devices:
        yield Cluster(device, devices, None)
        return
    for network in question.networks:
        yield Cluster(device, devices, network)


def _refused_at_all(catalogue: Catalogue, question: Question, device: str) -> str | None:
    """Why no number of these devices can do."""
    one = catalogue.devices[device]
    if one.rate(question.precision) is None:
        return f"rate: the catalogue has no images/s in {question.precision}"
    needed = memory_gib(question.model, question.precision, LEAST_IMAGES, catalogue.assumptions.reserve_gib.value)
    if needed > one.memory_gib.value:
        return f"memory: {LEAST_IMAGES} images need {needed:.3g} GiB, it has {one.memory_gib.value:g}"
    return None


def _refused(catalogue: Catalogue, question: Question, device: str, devices: int) -> str | None:
    """Why there cannot be so many."""
    if any(_fitting(catalogue, question, device, devices)):
        return None
    largest = max(budget.batch for budget in question.budgets)
    return (
        f"batch: {devices:,} devices x {LEAST_IMAGES} would be a batch of {devices * LEAST_IMAGES:,}, "
        f"the largest {question.largest_is} is {largest:,}"
    )


def _doubled(most: int) -> Iterator[int]:
    devices = 1
    while devices <= most:
        yield devices
        devices *= 2


def _rates(catalogue: Catalogue, question: Question) -> Iterator[RateUsed]:
    """As catalogued for ResNet-50; AlexNet's are worked out from them, whatever they are themselves."""
    for device in question.devices:
        rate = catalogue.devices[device].rate(question.precision)
        if rate is None:
            continue
        used = RateUsed(
            device=device,
            batch=rate.batch,
            value=rate.value,
            low=rate.least,
            high=rate.most,
            basis=rate.basis,
            certainty=rate.certainty.value,
            source=catalogue.sources[rate.source].title,
            note=rate.note,
        )
        yield used if question.model == "resnet50" else _worked_out(catalogue, question, used)


def _worked_out(catalogue: Catalogue, question: Question, used: RateUsed) -> RateUsed:
    model, precision = question.model, question.precision
    rate = ranged(lambda end: images_per_s(catalogue, used.device, model, precision, used.batch, end))
    # What rests on something unconfirmed is no surer than that.
    sure = catalogue.assumptions.alexnet_factor.certainty.value
    return used.model_copy(
        update={
            **rate.model_dump(),
            "basis": "predicted",
            "certainty": sure,
            "source": f"by roofline from ResNet-50's {used.value:g}: {used.source}",
        }
    )


def _assumptions(catalogue: Catalogue, question: Question) -> tuple[str, ...]:
    roofline = (
        "No AlexNet rate is published: they are ResNet-50's by the ratio of the rooflines, within a wide range.",
    )
    recipes: Sequence[str] = [
        f"{one.epochs:g} epochs up to a batch of {one.batch:,} ({one.recipe}, {one.certainty})"
        for one in question.budgets
    ]
    return (
        "Times, money and energy are predicted: a simulation of one step's events, from the catalogue's ranges.",
        "An interval goes from all ranges at their fast ends at once to all at their slow ends.",
        f"Epochs: {'; '.join(recipes)}.",
        f"A device has at least {LEAST_IMAGES} images a step, where rates are known; the input pipeline keeps up.",
        "Gradients are averaged by the fastest of ring or tree, hierarchy and torus for each message, in one lane.",
        f"Of the catalogue's figures {_how_sure(catalogue)}; each has its source there.",
        *(roofline if question.model == "alexnet_bn" else ()),
    )


def _how_sure(catalogue: Catalogue) -> str:
    """Such as ``10 are confirmed, 5 derived, 80 unconfirmed``."""
    counts = Counter(figure.certainty.value for _, figure in figures(catalogue))
    return f"{counts['confirmed']} are confirmed, {counts['derived']} derived, {counts['unconfirmed']} unconfirmed"
