"""Which clusters reach a goal, which don't and why, where the knee is, and what one more doubling buys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fourminutes.errors import UserError
from fourminutes.plan.words import did_you_mean
from fourminutes.scale.catalogue import Catalogue
from fourminutes.scale.clusters import Cluster, Training, Workload, layers, train_on
from fourminutes.scale.limits import LEAST_IMAGES, Schedule, memory_gib, most_images, schedules_of

#: A doubling that makes training shorter by less than this factor is beyond the knee.
KNEE = 1.6
Sort = Literal["money", "minutes", "energy", "devices"]


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        work: network and number format.
        minutes: how long training may take.
        devices: kinds to choose from; empty for all.
        networks: likewise.
        most_devices: of one cluster.
        batch: images a step; None takes, of those that recipes know, what is the fastest.
        epochs: passes over the training set; None takes the recipe's.
    """

    work: Workload
    minutes: float
    devices: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    most_devices: int = 4096
    batch: int | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class Doubling:
    """What twice the devices would buy: times faster, and times the money or energy."""

    faster: float
    cost: float


@dataclass(frozen=True)
class Line:
    """One kind of cluster over rising numbers of devices.

    Attributes:
        device: kind of device.
        network: kind of network.
        trainings: by number of devices, each with the schedule that is the fastest there.
        reaches: the smallest that reaches the goal by what is expected; None where none does.
        knee: from which on no doubling gains a factor of 1.6 any more; None where the last one still does.
        next: what one more doubling buys beyond `reaches`, or beyond the largest.
        why_not: why no more devices, or none at all, were looked at.
    """

    device: str
    network: str
    trainings: tuple[Training, ...]
    reaches: Training | None
    knee: Training | None
    next: Doubling | None
    why_not: str


def plan_purchase(goal: Goal, catalogue: Catalogue, sort: Sort = "devices") -> list[Line]:
    """Every kind of cluster, those that reach the goal first, in the order asked for.

    Raises:
        UserError: a name is unknown, the goal is not positive, or no recipe fits.
    """
    if goal.minutes <= 0:
        raise UserError(f"--target-minutes {goal.minutes:g}: must be more than 0")
    schedules = _schedules(goal)
    lines = [
        _line(device, network, goal, schedules, catalogue)
        for device in _known(goal.devices, catalogue.devices, "--device")
        for network in _known(goal.networks, catalogue.networks, "--network")
    ]
    return sorted(lines, key=lambda line: (line.reaches is None, _key(line, sort)))


def _known(asked: Sequence[str], known: object, option: str) -> list[str]:
    names = list(known)  # type: ignore[call-overload]
    for name in asked:
        if name not in names:
            raise UserError(
                f"{option} {name}: is not in the catalogue{did_you_mean(name, names, 'there are: ' + ', '.join(names))}"
            )
    return list(asked) or names


def _schedules(goal: Goal) -> list[Schedule]:
    """The batches to try.

    Raises:
        UserError: the batch is larger than any recipe's.
    """
    recipes = schedules_of(goal.work.model)
    largest = max((one.batch for one in recipes), default=0)
    if not recipes:
        raise UserError(f"--model {goal.work.model}: has no recipe in config/recipes.yaml; take resnet50 or alexnet_bn")
    if goal.batch is not None and goal.batch > largest:
        raise UserError(f"--batch {goal.batch}: the largest with a recipe for {goal.work.model} is {largest}")
    if goal.batch is not None:
        # A batch between two recipes needs no more epochs than the larger one.
        nearest = min((one for one in recipes if one.batch >= goal.batch), key=lambda one: one.batch)
        recipes = [Schedule(nearest.recipe, goal.batch, nearest.epochs)]
    return [Schedule(one.recipe, one.batch, goal.epochs or one.epochs) for one in recipes]


def _line(device: str, network: str, goal: Goal, schedules: Sequence[Schedule], catalogue: Catalogue) -> Line:
    form, owned = goal.work.form, catalogue.devices[device]
    if form not in owned.rates:
        return Line(device, network, (), None, None, None, f"no rate in {form} is known of it")
    most = most_images(layers(goal.work.model), owned.memory_gib, form)
    if most < LEAST_IMAGES:
        needs = memory_gib(layers(goal.work.model), LEAST_IMAGES, form)
        why = f"memory: {LEAST_IMAGES} images need {needs:.1f} GiB, it has {owned.memory_gib:g}"
        return Line(device, network, (), None, None, None, why)
    trainings = []
    for count in _counts(owned.node_devices, goal.most_devices):
        fitting = [one for one in schedules if one.batch >= LEAST_IMAGES * count]
        if not fitting:
            break
        cluster = Cluster(device, count, network)
        trainings.append(_fastest(cluster, fitting, most, goal.work, catalogue))
        if len(trainings) > 1 and trainings[-2].minutes.value <= goal.minutes:
            break  # one beyond the goal, for what a doubling buys
    return _judged(device, network, tuple(trainings), goal, schedules)


def _counts(node_devices: int, most: int) -> Iterator[int]:
    """One device, two, ... a node, two nodes, four, ..."""
    count = 1
    while count <= most:
        yield count
        count = 2 * count if count >= node_devices or 2 * count <= node_devices else node_devices


def _fastest(
    cluster: Cluster, schedules: Sequence[Schedule], most: int, work: Workload, catalogue: Catalogue
) -> Training:
    """With the recipe that takes the least time; of recipes with more epochs and no larger batch none is tried."""
    tried = [
        train_on(cluster, one, min(most, one.batch // cluster.count), work, catalogue) for one in _sensible(schedules)
    ]
    return min(tried, key=lambda training: training.minutes.value)


def _sensible(schedules: Sequence[Schedule]) -> list[Schedule]:
    """The smallest and the largest batch, of each the recipe with the fewest epochs: all others lie between."""
    by_batch = {one.batch: one for one in sorted(schedules, key=lambda one: -one.epochs)}
    ends = {min(by_batch), max(by_batch)}
    return [by_batch[batch] for batch in sorted(ends)]


def _judged(
    device: str, network: str, trainings: tuple[Training, ...], goal: Goal, schedules: Sequence[Schedule]
) -> Line:
    reaches = next((one for one in trainings if one.minutes.value <= goal.minutes), None)
    gains = [one.minutes.value / other.minutes.value for one, other in pairwise(trainings)]
    worth_it = [number for number, gain in enumerate(gains) if gain >= KNEE]
    bend = worth_it[-1] + 1 if worth_it else 0
    return Line(
        device=device,
        network=network,
        trainings=trainings,
        reaches=reaches,
        knee=trainings[bend] if bend < len(gains) else None,
        next=_doubling(trainings, reaches),
        why_not="" if reaches else _why_not(trainings, goal, schedules),
    )


def _doubling(trainings: tuple[Training, ...], reaches: Training | None) -> Doubling | None:
    """Beyond the goal, or of the last two."""
    at = trainings.index(reaches) if reaches else len(trainings) - 2
    if at < 0 or at + 1 >= len(trainings):
        return None
    one, other = trainings[at], trainings[at + 1]
    faster = one.minutes.value / other.minutes.value
    return Doubling(faster, other.cluster.count / one.cluster.count / faster)


def _why_not(trainings: tuple[Training, ...], goal: Goal, schedules: Sequence[Schedule]) -> str:
    """What stands between the largest that was looked at and the goal."""
    last, largest = trainings[-1], max(one.batch for one in schedules)
    count = 2 * last.cluster.count
    if count > goal.most_devices:
        return f"{last.cluster.count:,} devices take {last.minutes.value:.1f} minutes, and no more may be taken"
    return (
        f"batch: {count:,} devices would have {largest // count} images each of {largest:,}, the largest batch with a "
        f"recipe; {LEAST_IMAGES} is the least"
    )


def _key(line: Line, sort: Sort) -> float:
    """By what lines are sorted: of what reaches the goal, or of the largest."""
    if not line.trainings:
        return float("inf")
    training = line.reaches or line.trainings[-1]
    match sort:
        case "money":
            return training.money.value if training.money else float("inf")
        case "minutes":
            return training.minutes.value
        case "energy":
            return training.kwh.value
        case "devices":
            return training.cluster.count
