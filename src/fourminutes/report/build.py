"""Writing a plan's whole report."""

from __future__ import annotations

from pathlib import Path

from fourminutes.files import write_text
from fourminutes.plan import Plan
from fourminutes.report import drawing, figures, tables
from fourminutes.report.evidence import gather
from fourminutes.report.metrics import epochs_csv, metrics_json
from fourminutes.report.names import figure_names, table_names
from fourminutes.report.page import page
from fourminutes.report.table import Table


def build_report(plan: Plan) -> Path:
    """Write every table, every figure, the metrics and the page of `plan`; return the page's path.

    Equal records give equal bytes.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    evidence = gather(plan)
    built = {name: tables.BUILDERS[name](evidence) for name in table_names(plan)}
    drawn = {name: drawing.draw(figures.BUILDERS[name], evidence) for name in figure_names(plan)}
    for table in built.values():
        _write_table(plan.results / "tables", table)
    for name, forms in drawn.items():
        drawing.write_figure(plan.results / "figures", name, forms)
    write_text(plan.results / "metrics.json", metrics_json(evidence))
    write_text(plan.results / "epochs.csv", epochs_csv(evidence))
    path = plan.results / "report.html"
    write_text(path, page(evidence, built, drawn))
    return path


def _write_table(folder: Path, table: Table) -> None:
    write_text(folder / f"{table.name}.csv", table.csv())
    write_text(folder / f"{table.name}.md", table.markdown())
    write_text(folder / f"{table.name}.tex", table.latex())
