"""The page: one HTML file that needs nothing else, not even a script to be read."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from fourminutes.facts import Fact, Text
from fourminutes.record import (
    CommRecord,
    ProfileRecord,
    Provenance,
    ReplayRecord,
    RunRecord,
    ScaleRecord,
    SweepRecord,
)
from fourminutes.report import drawing, words
from fourminutes.report.evidence import Evidence, Sourced
from fourminutes.report.names import FIGURE_FORMATS, FIGURES, TABLE_FORMATS, TABLES
from fourminutes.report.precisions import groups
from fourminutes.report.published import published
from fourminutes.report.scalings import Scaling
from fourminutes.report.summary import key_numbers, lines
from fourminutes.report.table import Cell, Table
from fourminutes.report.tables import anchor
from fourminutes.report.tables_claims import arm_anchor

_HERE = Path(__file__).parent

#: Sections in the order of the page: anchor, heading, what stands there.
SECTIONS = (
    (
        "claims",
        "Claims",
        (
            ("verdicts", "claims"),
            ("table", "claims"),
            ("figure", "batch-size"),
            ("table", "sweeps"),
            ("figure", "tuning"),
            ("table", "ledger"),
        ),
    ),
    (
        "runs",
        "Runs",
        (("table", "runs"), ("figure", "accuracy"), ("figure", "time-split")),
    ),
    ("compare", "Compare", (("table", "compare"),)),
    ("data", "Data", (("table", "data"),)),
    (
        "paper",
        "Beside the paper",
        (
            ("table", "results"),
            ("figure", "ablations"),
            ("table", "ablations"),
            ("figure", "half-precision"),
            ("table", "half-precision"),
            ("figure", "scalability"),
        ),
    ),
    (
        "communication",
        "Communication",
        (
            ("figure", "allreduce"),
            ("table", "allreduce"),
            ("figure", "overlap"),
            ("figure", "steps"),
            ("table", "steps"),
        ),
    ),
    (
        "scale",
        "Scale",
        (
            ("figure", "profile"),
            ("table", "profile"),
            ("figure", "scaling-measured"),
            ("table", "scaling-measured"),
            ("figure", "throughput"),
            ("figure", "efficiency"),
            ("table", "scaling"),
            ("table", "what-if"),
            ("figure", "validation"),
            ("table", "validation"),
            ("figure", "p40"),
            ("table", "p40"),
            ("table", "sensitivity"),
        ),
    ),
    ("systems", "Other systems", (("figure", "systems"), ("table", "systems"))),
)
_OF_RUNS = ("runs", "compare")
#: Figures of the user's records with published numbers among them.
_WITH_PUBLISHED = ("ablations", "half-precision", "throughput", "efficiency")
#: Tables that are too long to lie open.
FOLDED = ("ledger",)
#: Tables whose columns are runs: sorted by one of them, they would only lose their order.
UNSORTED = ("compare",)
# Colours that follow the page's light or dark; the others stand on both.
_ADAPTIVE = {
    drawing.INK: "var(--ink)",
    drawing.TEXT: "var(--muted)",
    drawing.QUIET: "var(--quiet)",
    drawing.PAPER: "var(--paper)",
    "#d8dee4": "var(--rule)",
}


@dataclass(frozen=True)
class Origin:
    """Where a record comes from, as the page tells it."""

    anchor: str
    label: str
    path: str
    lines: tuple[tuple[str, str], ...]

    @property
    def written(self) -> str | None:
        """When; None for a record that notes no time, so that equal data give equal bytes."""
        return dict(self.lines).get("written")


def page(evidence: Evidence, tables: dict[str, Table], figures: dict[str, dict[str, bytes]]) -> str:
    """The whole page as HTML; figures stand in it as SVG."""
    return _template().render(
        plan=evidence.plan,
        summary=lines(evidence),
        key_numbers=key_numbers(evidence),
        sections=_sections(tables, figures, evidence),
        claims=evidence.judgements,
        folded=FOLDED,
        unsorted=UNSORTED,
        tables=tables,
        figures={name: Markup(inline_svg(forms["svg"].decode(), name)) for name, forms in figures.items()},
        table_captions=TABLES,
        figure_captions=FIGURES,
        table_formats=TABLE_FORMATS,
        figure_formats=FIGURE_FORMATS,
        origins={name: _shown_origins(name, evidence) for name in figures},
        records=_origins(evidence),
        named=_named(evidence),
        newest=max((record.written for record in _origins(evidence) if record.written), default=None),
        sources=published().sources,
        sort_key=_sort_key,
        style=Markup((_HERE / "style" / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "style" / "page.js").read_text(encoding="utf-8")),
    )


def inline_svg(svg: str, name: str) -> str:
    """The figure for use inside a page: own ids, the page's font and colours, no declaration, no fixed size."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for colour, variable in _ADAPTIVE.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{FIGURES[name]}"', 1)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["zip"] = zip
    return environment.get_template("page.html.jinja")


def _sections(
    tables: Container[str], figures: Container[str], evidence: Evidence
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The sections that the plan has; those of runs at the end where none is recorded yet."""
    present = {"verdicts": tables, "table": tables, "figure": figures}
    chosen = [
        (place, heading, [(kind, name) for kind, name in items if name in present[kind]])
        for place, heading, items in SECTIONS
    ]
    there = [section for section in chosen if section[2]]
    return there if evidence.runs else sorted(there, key=lambda section: section[0] in _OF_RUNS)


def _shown_origins(figure: str, evidence: Evidence) -> list[str]:
    """What the figure shows: measured, predicted or published numbers."""
    by_figure = {"allreduce": evidence.comms, "batch-size": evidence.arms, "tuning": evidence.arms}
    by_figure |= {"scaling-measured": evidence.scalings, "half-precision": groups(evidence)}
    measured = by_figure.get(figure, evidence.runs)
    predicted = evidence.scale if figure in ("throughput", "efficiency") else None
    if figure in ("scalability", "systems"):
        return ["published"]
    if figure == "steps":
        return ["predicted", "published"]
    if figure == "p40":
        return ["predicted", "published"]
    if figure in ("validation", "profile"):
        return ["measured", "predicted"] if (evidence.replays if figure == "validation" else evidence.profiles) else []
    shown = [("measured", measured), ("predicted", predicted), ("published", figure in _WITH_PUBLISHED)]
    return [origin for origin, there in shown if there]


def _sort_key(cell: Cell) -> str:
    """What a program sorts the cell by; empty for nothing."""
    value = cell.value if isinstance(cell, Fact | Text) else cell
    return "" if value is None else str(value)


def _origins(evidence: Evidence) -> list[Origin]:
    """Every record that the report stands on."""
    runs = [Origin(anchor(run), run.label, run.path.as_posix(), _run_lines(run.record)) for run in evidence.runs]
    sweeps = [
        Origin(arm_anchor(arm), arm.name, arm.path.as_posix(), _training_lines(arm.record)) for arm in evidence.arms
    ]
    measured = [
        Origin(sourced.anchor, kind, sourced.path.as_posix(), _provenance_lines(sourced.record.provenance))
        for kind, sourced in _measured(evidence)
    ]
    return runs + sweeps + [_scaling_origin(one) for one in evidence.scalings] + measured + _data_origin(evidence)


def _named(evidence: Evidence) -> dict[str, str]:
    """Places of the runs' and sweeps' records by name, so that each leads there wherever a table has it."""
    runs = {run.label: anchor(run) for run in evidence.runs}
    sweeps = {arm.name: arm_anchor(arm) for arm in evidence.arms}
    return {name: place for name, place in (runs | sweeps).items() if not (name in runs and name in sweeps)}


def _data_origin(evidence: Evidence) -> list[Origin]:
    """The manifest: it notes neither machine nor time, for equal pictures give equal bytes on any."""
    if evidence.manifest is None:
        return []
    manifest = evidence.manifest.record
    lines = (
        ("data set", manifest.dataset_hash),
        ("recipe", ", ".join(f"{key} {value}" for key, value in manifest.recipe.model_dump(exclude_none=True).items())),
        ("command", f"not noted; the same again by: snakemake data --config plan={evidence.plan.name}"),
    )
    return [Origin(evidence.manifest.anchor, "data set", evidence.manifest.path.as_posix(), lines)]


def _scaling_origin(one: Scaling) -> Origin:
    record = one.record
    label = f"{one.label}, {words.count(record.processes, 'process')}"
    lines = (
        ("data set", record.dataset_hash or "none: one held batch of noise"),
        ("hardware", words.hardware(record.placement, record.provenance)),
        ("arithmetic", record.placement.arithmetic or record.settings.precision),
        *_provenance_lines(record.provenance),
    )
    return Origin(one.anchor, label, one.path.as_posix(), lines)


_NoTraining = Sourced[CommRecord] | Sourced[ReplayRecord] | Sourced[ProfileRecord] | Sourced[ScaleRecord]


def _measured(evidence: Evidence) -> Iterator[tuple[str, _NoTraining]]:
    """The records that are no training, each with what it is."""
    yield from (("collectives", comm) for comm in evidence.comms)
    yield from (("replayed steps", replay) for replay in evidence.replays)
    yield from (("profile", profile) for profile in evidence.profiles)
    if evidence.scale:
        yield "prediction", evidence.scale


def _run_lines(record: RunRecord) -> tuple[tuple[str, str], ...]:
    weights = f"{record.parameter_checksum} (SHA-256), {record.parameters:,} parameters"
    return ("weights", weights), *_training_lines(record)


def _training_lines(record: RunRecord | SweepRecord) -> tuple[tuple[str, str], ...]:
    placement = record.placement
    bn_images = f"; batch norm over {words.count(placement.bn_images, 'image')}" if placement.bn_images else ""
    return (
        ("data set", record.dataset_hash),
        ("hardware", words.hardware(placement, record.provenance)),
        ("arithmetic", f"{placement.arithmetic or record.settings.precision}{bn_images}"),
        *_provenance_lines(record.provenance),
    )


def _provenance_lines(provenance: Provenance) -> tuple[tuple[str, str], ...]:
    dirty = ", with changes" if provenance.git_dirty else ""
    return (
        ("command", provenance.command),
        ("commit", f"{provenance.git_commit or 'not in a clone'}{dirty}"),
        (
            "machine",
            f"{provenance.host}: {provenance.cpu}, {provenance.cpu_cores} cores, {provenance.memory_gib:g} GiB",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(provenance.versions.items()))),
        ("written", provenance.written),
    )
