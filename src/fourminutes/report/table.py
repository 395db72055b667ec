"""A table as values, and its forms: CSV for programs, Markdown and LaTeX for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import tabulate

from fourminutes.facts import Certainty, Fact, Text

Cell = str | int | float | Fact | Text | None
Form = Callable[[float], str]

# Headings no wider than their columns need, so that the table of runs fits a terminal.
tabulate.MIN_PADDING = 0

NOTHING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\textsuperscript{\textdagger}",
    "‡": r"\textsuperscript{\textdaggerdbl}",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "≥": r"$\geq$",
}
_CERTAINTY_NOTES = {
    Certainty.UNCONFIRMED: "(x)† unconfirmed: remembered, found in no readable copy.",
    Certainty.DERIVED: "x‡ derived from confirmed numbers.",
}


def signed(count: int) -> Form:
    """A difference with its sign, and that many digits after the point."""
    return lambda number: f"{number:+.{count}f}"


def digits(count: int) -> Form:
    """A number with that many digits after the point, thousands parted by commas."""
    return lambda number: f"{number:,.{count}f}"


@dataclass(frozen=True)
class Column:
    """One column; `form` makes a number readable, the CSV gets it as it is."""

    key: str
    heading: str
    form: Form | None = None
    certain: bool = field(default=False, kw_only=True)
    csv_only: bool = field(default=False, kw_only=True)

    @property
    def csv_keys(self) -> tuple[str, ...]:
        """The column's names in the CSV."""
        return (self.key, f"{self.key}_certainty") if self.certain else (self.key,)

    @property
    def align(self) -> Literal["left", "right"]:
        """Numbers stand right, words left."""
        return "right" if self.form else "left"

    def text(self, cell: Cell) -> str:
        """The cell as people read it: what is unconfirmed bracketed and marked, what is derived marked."""
        if cell is None:
            return NOTHING
        if isinstance(cell, Fact | Text):
            text = self.text(cell.value)
            if cell.certainty is Certainty.UNCONFIRMED:
                return f"({text})†"
            return f"{text}‡" if cell.certainty is Certainty.DERIVED else text
        return self.form(cell) if self.form and not isinstance(cell, str) else str(cell)


@dataclass(frozen=True)
class Row:
    """One row; `anchor` is the record it can be traced to, `emphasis` sets it off, `group` is its kind."""

    cells: dict[str, Cell]
    origin: Literal["measured", "published", "predicted"] = "measured"
    anchor: str | None = None
    emphasis: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, rows and the notes below them; `asides` are told in another form where the page shows the table."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    empty: str = "No records yet."
    asides: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns for people."""
        return tuple(column for column in self.columns if not column.csv_only)

    def texts(self) -> list[list[str]]:
        """The shown cells as texts, row by row."""
        return [[column.text(row.cells.get(column.key)) for column in self.shown] for row in self.rows]

    def footnotes(self) -> tuple[str, ...]:
        """The notes, and what the marks in the cells mean, where there are any."""
        used = {cell.certainty for row in self.rows for cell in row.cells.values() if isinstance(cell, Fact | Text)}
        marks = tuple(note for certainty, note in _CERTAINTY_NOTES.items() if certainty in used)
        return (*self.notes, *marks) if self.rows else (self.empty,)

    def csv(self) -> str:
        """Plain numbers; beside each column of published claims one with their certainty."""
        keys = [key for column in self.columns for key in column.csv_keys]
        rows = [[value for column in self.columns for value in _csv_values(column, row)] for row in self.rows]
        return pd.DataFrame(rows, columns=keys, dtype=object).to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        """A pipe table and its notes, aligned to be read as it is."""
        table = tabulate.tabulate(
            self.texts(),
            headers=[column.heading for column in self.shown],
            tablefmt="pipe",
            colalign=[column.align for column in self.shown] if self.rows else None,
            disable_numparse=True,
        )
        return "\n\n".join([table, *self.asides, *self.footnotes()]) + "\n"

    def latex(self) -> str:
        r"""A booktabs tabular; its notes stand below it as a small paragraph."""
        frame = pd.DataFrame(
            [[_latex(text) for text in row] for row in self.texts()],
            columns=[_latex(column.heading) for column in self.shown],
        )
        aligns = "".join(column.align[0] for column in self.shown)
        notes = "".join(
            f"\n\\par\\smallskip\\footnotesize {_latex(note)}" for note in (*self.asides, *self.footnotes())
        )
        return frame.to_latex(index=False, escape=False, column_format=aligns).rstrip() + notes + "\n"


def _csv_values(column: Column, row: Row) -> tuple[str | int | float | None, ...]:
    cell = row.cells.get(column.key)
    value = plain(cell.value if isinstance(cell, Fact | Text) else cell)
    if not column.certain:
        return (value,)
    certainty = cell.certainty.value if isinstance(cell, Fact | Text) else (row.origin if value is not None else None)
    return value, certainty


def plain(value: str | int | float | None) -> str | int | float | None:
    """A number without digits that mean nothing: six, or none after the point of a whole one."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
