"""The planner's answer as text tables for the screen. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from tabulate import tabulate

from fourminutes.scale.answers import Answer, RateUsed, Row
from fourminutes.scale.clusters import Ranged
from fourminutes.scale.knee import curves_of
from fourminutes.scale.whatif import WhatIf

Sort = Literal["time", "money", "energy", "devices"]
_NEAR = 1.5
_NAMES = {"resnet50": "ResNet-50", "alexnet_bn": "AlexNet-BN"}


def answer_text(answer: Answer, sort: Sort, most_rows: int) -> str:
    """All of it: rates, clusters that reach the goal, those that come near, why others don't, knees, assumptions."""
    reaching = sorted(smallest_reaching(answer), key=sort_key(sort))
    near = sorted(nearest_missing(answer), key=lambda row: row.minutes.value)
    goal = f"{_NAMES[answer.model]}, {answer.precision} precision, within {answer.target_minutes:g} minutes"
    parts = [
        f"# {goal}; times, money and energy are predicted, with their intervals",
        _rates(answer),
        f"The smallest number of each device on each network that reaches it, by {sort}:\n"
        + _rows(reaching[:most_rows])
        if reaching
        else "No cluster reaches it.",
        _more(len(reaching) - most_rows),
        f"Near, within {_NEAR:g} times the goal:\n" + _rows(near[:most_rows]) if near else "",
        "Left out:\n" + _table(["device", "from devices", "why"], _left_out(answer)) if answer.refused else "",
        "Knee: from here one more doubling makes training less than 1.6 times as fast:\n" + _knees(answer),
        _money(answer),
        "\n".join(f"# {line}" for line in answer.assumptions),
    ]
    return "\n\n".join(part for part in parts if part)


def smallest_reaching(answer: Answer) -> list[Row]:
    """For each device and network the fewest devices that reach the goal with every range's value, each once."""
    found = []
    for curve in curves_of(answer.rows).values():
        found += [row for row in curve if row.minutes.value <= answer.target_minutes][:1]
    return _once(found)


def nearest_missing(answer: Answer) -> list[Row]:
    """For each device and network that never reaches it the shortest time, where that is near."""
    found = []
    for curve in curves_of(answer.rows).values():
        best = min(curve, key=lambda row: row.minutes.value)
        if answer.target_minutes < best.minutes.value <= _NEAR * answer.target_minutes:
            found.append(best)
    return _once(found)


def sort_key(sort: Sort) -> Callable[[Row], tuple[bool, float, float]]:
    """What rows are ordered by; those without a price come last by money, by energy."""
    match sort:
        case "money":
            return lambda row: (row.money is None, row.money.value if row.money else row.energy_kwh.value, row.devices)
        case "energy":
            return lambda row: (False, row.energy_kwh.value, row.devices)
        case "devices":
            return lambda row: (False, row.devices, row.minutes.value)
        case _:
            return lambda row: (False, row.minutes.value, row.devices)


def _once(rows: Sequence[Row]) -> list[Row]:
    """A node by itself is on every network's curve."""
    return list({(row.device, row.devices, row.network): row for row in rows}.values())


def _rates(answer: Answer) -> str:
    def row(one: RateUsed) -> tuple[str, ...]:
        how = f"{one.value:,.0f} ({one.low:,.0f} to {one.high:,.0f})"
        return (one.device, how, str(one.batch), one.basis, one.certainty, one.source)

    head = ["device", "images/s alone", "with", "number is", "certainty", "source"]
    return _table(head, [row(one) for one in answer.rates])


def _rows(rows: Sequence[Row]) -> str:
    head = ["devices", "device", "network", "batch", "epochs", "images/s", "efficiency %", "minutes", "reaches"]
    body = [
        (
            f"{row.devices:,}",
            row.device,
            row.network or "one node",
            f"{row.batch:,} = {row.devices:,} x {row.per_device}",
            f"{row.epochs:g}",
            _ranged(row.images_per_s, 0),
            _ranged(row.efficiency_percent, 0),
            _ranged(row.minutes, 1),
            row.reaches,
            _ranged(row.energy_kwh, 0),
            _ranged(row.money, 0) if row.money else "",
        )
        for row in rows
    ]
    return _table([*head, "kWh", "money"], body)


def _left_out(answer: Answer) -> list[tuple[str, ...]]:
    """Devices that share a number and a reason stand in one line."""
    shared: dict[tuple[int, str], list[str]] = {}
    for one in answer.refused:
        shared.setdefault((one.devices, one.reason), []).append(one.device)
    lines: list[tuple[str, ...]] = [
        (", ".join(names), f"{devices:,}", reason) for (devices, reason), names in shared.items()
    ]
    near = {(row.device, row.network) for row in nearest_missing(answer)}
    for (device, network), curve in curves_of(answer.rows).items():
        best = min(curve, key=lambda row: row.minutes.value)
        if best.minutes.value > answer.target_minutes and (device, best.network) not in near:
            reason = f"time: takes {best.minutes.value:.1f} minutes at best on {network}, with {best.devices:,} devices"
            lines.append((device, "1", reason))
    return lines


def _knees(answer: Answer) -> str:
    """Networks that make no difference stand in one line."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for knee in answer.knees:
        numbers = (
            f"{knee.devices:,}",
            f"{knee.minutes:.1f}",
            f"{knee.doubled_minutes:.1f}" if knee.doubled_minutes else "",
            f"x {knee.speedup:.2f}" if knee.speedup else "",
            f"x {knee.cost_factor:.2f}" if knee.cost_factor else "",
            knee.why,
        )
        shared.setdefault((knee.device, *numbers), []).append(knee.network)
    head = ["device", "network", "knee", "minutes", "doubled", "speed", "device hours", "what is lost"]
    return _table(head, [(line[0], ", ".join(names), *line[1:]) for line, names in shared.items()])


def _money(answer: Answer) -> str:
    without = dict.fromkeys(row.device for row in answer.rows if row.money is None)
    return f"# No price is known for {', '.join(without)}: money is empty; give --price DEVICE=PRICE" if without else ""


def _more(left: int) -> str:
    return f"# {left} more; --rows shows them, --json all" if left > 0 else ""


def _ranged(one: Ranged, digits: int) -> str:
    return f"{one.value:,.{digits}f} ({one.low:,.{digits}f} to {one.high:,.{digits}f})"


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, headers=headers, disable_numparse=True)


def what_if_text(found: WhatIf) -> str:
    """Every run's changes."""
    body = [
        (
            one.run,
            one.change,
            one.basis,
            f"{1e3 * one.step_s.value:.1f} ({1e3 * one.step_s.low:.1f} to {1e3 * one.step_s.high:.1f})",
            _ranged(one.images_per_s, 0),
            _ranged(one.efficiency_percent, 0),
            f"{one.change_percent:+.1f}",
            one.note,
        )
        for one in found.changes
    ]
    head = ["run", "what if", "number is", "step ms", "images/s", "efficiency %", "change %", "note"]
    return f"# plan {found.plan}: changes from its own measurements, of images/s against 'as it is'\n\n" + _table(
        head, body
    )
