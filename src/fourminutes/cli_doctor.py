"""The `fourminutes doctor` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourminutes.cli_comm import JsonOption
from fourminutes.errors import EXIT_BAD_INPUT


def doctor(
    plan: Annotated[
        Path | None, typer.Option("--plan", help="plan to hold against what is here; default the one of params.yaml")
    ] = None,
    json_: JsonOption = False,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="read archives with known MD5 sums to their ends (155 GB)")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster/--no-cluster", help="ask Slurm's idle nodes, by one short step")
    ] = True,
    fix: Annotated[bool, typer.Option("--fix", help="tell DVC to use hard links where file locks fail")] = False,
) -> None:
    """Say what this machine or cluster has, what the plan needs, and what is missing; exit 2 if anything is."""
    from fourminutes.doctor.examine import Question, examine
    from fourminutes.doctor.finding import shown

    examination = examine(Question(plan, cluster=cluster, checksums=checksums, fix=fix))
    print(examination.model_dump_json(indent=1) if json_ else shown(examination))
    if not examination.can_run:
        raise typer.Exit(EXIT_BAD_INPUT)
