"""Tables, figures and the page, from records and published numbers alone.

Importing this package is cheap: pandas and matplotlib are loaded when something is drawn. Nothing here needs torch
or DALI.
"""

from __future__ import annotations

from pathlib import Path

from fourminutes.plan import Plan
from fourminutes.report.names import FIGURES, TABLES, figure_names, table_names

__all__ = ["FIGURES", "TABLES", "figure_names", "make_report", "table_names"]


def make_report(plan: Plan) -> Path:
    """Write the plan's tables, figures and page below `plan.results`; return the page's path.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    from fourminutes.report.build import build_report

    return build_report(plan)
