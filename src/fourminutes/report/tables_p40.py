"""The paper's cluster by the model: intervals beside what is published, and what they hang on."""

from __future__ import annotations

from collections.abc import Iterator

from fourminutes.facts import Certainty, Fact
from fourminutes.report import words
from fourminutes.report.evidence import Evidence
from fourminutes.report.published import published
from fourminutes.report.table import Cell, Column, Row, Table
from fourminutes.scale.p40 import Point, Predicted, Sensitivity, predictions, ranges, sensitivities

_UNITS = {"minutes": "minutes", "efficiency": "% of one device", "speed-up": "times the unfused ring"}
#: Constants by their names in the model, as people read them.
_UNIT_OF = {
    "images_s": "images/s",
    "tflops": "TFLOP/s",
    "gbyte_s": "GB/s",
    "us": "µs",
    "byte_parameter": "bytes a parameter",
}


def p40_table(_evidence: Evidence) -> Table:
    """One row a point and published value of it."""
    columns = (
        Column("model", "model"),
        Column("devices", "P40", lambda number: f"{number:,.0f}"),
        Column("quantity", "quantity"),
        Column("low", "2.5 %", words.number),
        Column("median", "predicted", words.number),
        Column("high", "97.5 %", words.number),
        Column("published", "published", words.number, certain=True),
        Column("lies", "within"),
        Column("source", "source"),
    )
    rows = tuple(Row(_cells(one, fact), "predicted") for one in predictions() for fact in facts_of(one.point))
    notes = (
        "Nothing is fitted to the paper's results: every constant is a range with its source (the next table), all are "
        "drawn at once, and an interval holds 95 % of what comes out.",
        _verdict(),
        'Efficiency is against devices that wait for nobody. The speed-ups are "up to", as published; the library\'s '
        "ring of 2018 has no trees, and one call for each tensor.",
    )
    return Table("p40", columns, rows, notes)


def _cells(one: Predicted, fact: Fact) -> dict[str, Cell]:
    point = one.point
    return {
        "model": words.PAPER_MODELS[point.model],
        "devices": point.devices,
        "quantity": f"{point.quantity}, {_UNITS[point.quantity]}" if point.quantity != "minutes" else "minutes",
        "low": one.low,
        "median": one.median,
        "high": one.high,
        "published": fact,
        "lies": "yes" if one.holds(fact.value) else "no",
        "source": fact.source,
    }


def _verdict() -> str:
    """How many of the confirmed values lie in their intervals, and which do not."""
    held = {
        (one.point, fact.value): one.holds(fact.value)
        for one in predictions()
        for fact in facts_of(one.point)
        if fact.certainty is Certainty.CONFIRMED
    }
    out = [
        f"{words.PAPER_MODELS[point.model]} on {point.devices:,} ({value:g})"
        for (point, value), lies in held.items()
        if not lies
    ]
    told = f"Of {len(held)} confirmed values {sum(held.values())} lie in their intervals"
    return f"{told}; not {words.joined(out)}." if out else f"{told}."


def facts_of(point: Point) -> tuple[Fact, ...]:
    """What is published of the point, the surest first."""
    model = words.PAPER_MODELS[point.model]
    match point.quantity:
        case "minutes":
            found = [
                line.minutes
                for line in published().headline
                if line.model == model and line.accelerators and line.accelerators.value == point.devices
            ]
        case "efficiency":
            found = [
                row.percent
                for row in published().efficiencies
                if (row.model, row.accelerators) == (model, point.devices)
            ]
        case "speed-up":
            found = [
                row.factor for row in published().speedups if (row.model, row.accelerators) == (model, point.devices)
            ]
    order = list(Certainty)
    return tuple(sorted((fact for fact in found if fact), key=lambda fact: order.index(fact.certainty)))


def sensitivity_table(_evidence: Evidence) -> Table:
    """One row a constant: its range and source, and what its ends make of each point, all others in their middles."""
    effects = {(one.point, one.constant): one for one in sensitivities()}
    points = list(dict.fromkeys(point for point, _ in effects))
    columns = (
        Column("constant", "constant"),
        Column("low", "low", words.number),
        Column("high", "high", words.number),
        Column("certainty", "certainty"),
        Column("source", "source"),
        *(column for point in points for column in _point_columns(point)),
        Column("note", "note"),
    )
    rows = tuple(Row(dict(_constant_cells(name, points, effects)), "predicted") for name in ranges())
    notes = (
        "What a point would be with the constant at the low and at the high end of its range, all others in their "
        "middles; empty where it makes no difference.",
    )
    return Table("sensitivity", columns, rows, notes)


def _point_columns(point: Point) -> Iterator[Column]:
    short = {"minutes": "min", "efficiency": "%", "speed-up": "×"}[point.quantity]
    heading = f"{words.PAPER_MODELS[point.model]} {point.devices:,}, {short}"
    yield Column(_key(point), heading, csv_only=False)


def _key(point: Point) -> str:
    return f"{point.model}_{point.devices}_{point.quantity.replace('-', '_')}"


def _constant_cells(
    name: str, points: list[Point], effects: dict[tuple[Point, str], Sensitivity]
) -> Iterator[tuple[str, Cell]]:
    one = ranges()[name]
    yield "constant", _said(name)
    yield "low", one.low
    yield "high", one.high
    yield "certainty", one.certainty
    yield "source", one.source
    yield "note", one.note
    for point in points:
        if effect := effects.get((point, name)):
            yield _key(point), f"{words.number(effect.at_low)} to {words.number(effect.at_high)}"


def _said(name: str) -> str:
    """The constant with its unit, such as ``outer latency, µs``."""
    for ending, unit in _UNIT_OF.items():
        if name.endswith(f"_{ending}"):
            return f"{name.removesuffix(f'_{ending}').replace('_', ' ')}, {unit}"
    return name.replace("_", " ")
