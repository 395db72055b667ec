"""A purchase plan as text for the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from fourminutes.scale.catalogue import Catalogue
from fourminutes.scale.clusters import Estimate, Training
from fourminutes.scale.planner import KNEE, Goal, Line


def plan_text(goal: Goal, lines: Sequence[Line], catalogue: Catalogue) -> str:
    """What reaches the goal, what does not and why, and what the numbers stand on."""
    reaching = [line for line in lines if line.reaches]
    others = [line for line in lines if not line.reaches]
    parts = [_head(goal), _reaching(reaching) if reaching else "Nothing in the catalogue reaches the goal."]
    if others:
        parts.append(_others(others))
    return "\n\n".join([*parts, *_notes(goal, catalogue)])


def _head(goal: Goal) -> str:
    return f"# {goal.work.model} in {goal.work.form}, within {goal.minutes:g} minutes; all numbers are predicted"


def _reaching(lines: Sequence[Line]) -> str:
    rows = [_row(line, line.reaches) for line in lines if line.reaches]
    headers = [
        "cluster",
        "batch (recipe)",
        "a device",
        "minutes",
        "images/s",
        "efficiency %",
        "money",
        "kWh",
        "knee at",
        "twice as many",
    ]
    return str(tabulate(rows, headers=headers, disable_numparse=True))


def _row(line: Line, training: Training) -> tuple[str, ...]:
    passes = f"{training.passes} x {training.images}" if training.passes > 1 else f"{training.images}"
    return (
        f"{training.cluster.count:,} {line.device}, {line.network}",
        f"{training.schedule.batch:,} ({training.schedule.recipe})",
        passes,
        between(training.minutes),
        between(training.images_s, 0),
        between(training.efficiency_percent, 0),
        between(training.money) if training.money else "no price",
        between(training.kwh),
        f"{line.knee.cluster.count:,}" if line.knee else "beyond",
        f"{line.next.faster:.2f}x faster, {line.next.cost:.2f}x the cost" if line.next else "not possible",
    )


def between(estimate: Estimate, digits: int = 1) -> str:
    """A number and its ends, such as ``8.1 (7.5 to 12.2)``."""
    value, low, high = (f"{number:,.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _others(lines: Sequence[Line]) -> str:
    rows = [(f"{line.device}, {line.network}", *_nearest(line), line.why_not) for line in lines]
    return str(tabulate(rows, headers=["does not", "devices", "minutes", "because"], disable_numparse=True))


def _nearest(line: Line) -> tuple[str, str]:
    if not line.trainings:
        return "", ""
    last = line.trainings[-1]
    return f"{last.cluster.count:,}", between(last.minutes)


def _notes(goal: Goal, catalogue: Catalogue) -> Iterator[str]:
    yield (
        "In brackets: with every quantity of the catalogue at the end of its range that makes training shorter, and at "
        f"the other. The knee is the number of devices from which on twice as many gain less than a factor of {KNEE:g}."
    )
    yield "Rates stand on: " + "; ".join(_rates(goal, catalogue)) + "."
    if goal.work.model != "resnet50":
        yield f"No rate of {goal.work.model} is published: it follows from ResNet-50's by the networks' arithmetic."


def _rates(goal: Goal, catalogue: Catalogue) -> Iterator[str]:
    """Where each device's rate comes from."""
    for name in goal.devices or catalogue.devices:
        known = catalogue.devices[name].rates.get(goal.work.form)
        if known:
            yield f"{name} {known.rate.value:,.0f} images/s ({known.rate.certainty}, {known.rate.source})"
