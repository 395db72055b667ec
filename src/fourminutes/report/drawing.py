"""The one style of all figures, and writing them so that equal inputs give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fourminutes.facts import Certainty, Fact
from fourminutes.files import written_aside
from fourminutes.report.names import FIGURE_FORMATS

STYLE = Path(__file__).with_name("style") / "fourminutes.mplstyle"

INK, TEXT, QUIET, PAPER = "#24292f", "#57606a", "#8c959f", "#ffffff"
# Okabe and Ito's colours, told apart by the colour-blind, in an order that also alternates light and dark.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
# One more than colours, so that the two together tell more lines apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
DASHED = (0, (3, 2))

PAGE_IN = 7.0
#: How a legend names a certainty.
SAID = {Certainty.CONFIRMED: "published", Certainty.DERIVED: "derived", Certainty.UNCONFIRMED: "unconfirmed"}
_Source = TypeVar("_Source")
_FEW_DECADES = 1e3

# Whatever would make two drawings of the same data differ, by format.
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Series:
    """Colour, dash and marker of one line: each alone tells it from its neighbours."""

    colour: str
    dash: Any
    marker: str


def series(index: int) -> Series:
    """The looks of the line of that number."""
    return Series(
        COLOURS[index % len(COLOURS)],
        DASHES[(index // len(COLOURS) + index) % len(DASHES)],
        MARKERS[index % len(MARKERS)],
    )


def filling(colour: str, certainty: Certainty) -> dict[str, Any]:
    """A marker's filling: whole where the number is confirmed, half where derived, none where unconfirmed."""
    return {
        "markerfacecolor": PAPER if certainty is Certainty.UNCONFIRMED else colour,
        "markerfacecoloralt": PAPER,
        "fillstyle": "left" if certainty is Certainty.DERIVED else "full",
    }


def published_look(marker: str, certainty: Certainty) -> dict[str, Any]:
    """The looks of a published point: black, and filled as it is sure."""
    return {"color": INK, "marker": marker, "ls": "", **filling(INK, certainty)}


def published_point(axes: Axes, x: float, y: float, marker: str, certainty: Certainty) -> None:
    """Draw a published point, what is confirmed over what is not."""
    order = 3 if certainty is Certainty.UNCONFIRMED else 4
    axes.plot(x, y, zorder=order, clip_on=False, **published_look(marker, certainty))


def least_sure(*facts: Fact) -> Certainty:
    """The certainty of a point drawn from several numbers: that of the least sure one."""
    order = (Certainty.CONFIRMED, Certainty.DERIVED, Certainty.UNCONFIRMED)
    return max((fact.certainty for fact in facts), key=order.index)


def plain_ticks(axis: Axis) -> None:
    """Numbers as people write them (0.1, 10, 1,000), also on a logarithmic axis, and no minor ticks."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def log_ticks(axis: Axis, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain ticks of a logarithmic axis, at `subs` of each decade where few decades would leave few labels."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=subs if high / low < _FEW_DECADES else (1,)))
    plain_ticks(axis)


def new_figure(width_in: float, height_in: float, panels: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes side by side, without pyplot's global state."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, **options)
    return figure, list(axes[0])


def panel_grid(panels: int, most_columns: int, row_height_in: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with `panels` axes, at most `most_columns` in a row."""
    columns = min(panels, most_columns)
    rows = -(-panels // columns)
    figure = Figure(figsize=(PAGE_IN, 0.6 + rows * row_height_in), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes[:panels]


def say_empty(axes: list[Axes], text: str) -> None:
    """Say in place of the drawing why there is none."""
    for panel in axes:
        panel.set_axis_off()
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(PAGE_IN, 0.5 + 0.2 * len(text.splitlines()))
    figure.text(0.02, 0.5, text, va="center", color=TEXT)


def draw(build: Callable[[_Source], Figure], source: _Source) -> dict[str, bytes]:
    """The figure that `build` makes of `source`, in every format, as bytes."""
    with mpl.rc_context(fname=str(STYLE)):
        figure = build(source)
        # The layout is solved once, for all formats.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return {form: _rendered(figure, form) for form in FIGURE_FORMATS}


def write_figure(folder: Path, name: str, forms: dict[str, bytes]) -> None:
    """Write ``<name>.<format>`` for every format.

    Raises:
        UserError: the folder cannot be written.
    """
    for form, content in forms.items():
        with written_aside(folder / f"{name}.{form}") as file:
            file.write(content)


def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=_METADATA[form])
    return buffer.getvalue()
