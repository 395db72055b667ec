"""The `fourminutes scale replay` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourminutes.cli_comm import require_json
from fourminutes.comm.launch import TIMEOUT_S


def replay(
    cases: Annotated[
        Path,
        typer.Argument(help="YAML file: network, repeats, and the cases by name; keys in workflow/schemas/plan.md"),
    ],
    out: Annotated[Path, typer.Option(help="JSON record to write, or to go on with")],
    link: Annotated[str, typer.Option(help="what the links are, for the record, such as '200 Mbit/s'")] = "",
) -> None:
    """Measure steps whose computing is waited for and whose gradients are really reduced, to hold predictions against.

    Case by case, each written when it is measured; the same line again goes on with what is missing.
    """
    from fourminutes.comm.watched import watched
    from fourminutes.plan.replay import read_replay

    require_json(out)
    settings = read_replay(cases)
    with watched(timeout_s=TIMEOUT_S, again="start again: measured cases are kept"):
        from fourminutes.comm.replaying import run_replay  # takes seconds

        run_replay(settings, out, link=link)
