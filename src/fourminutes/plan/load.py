"""Reading a plan from YAML; whatever is wrong with it becomes one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fourminutes.errors import UserError
from fourminutes.plan.layers import laid_together, run_layers, written_at
from fourminutes.plan.model import Plan
from fourminutes.plan.reading import read_mapping
from fourminutes.plan.run import RunPlan
from fourminutes.plan.words import did_you_mean, dotted, first_problem

PLAN_FOLDER = Path("config/plans")


def find_plan(plan: str) -> Path:
    """The file of a plan given by its name (``demo``) or by a path (``my/demo.yaml``)."""
    if plan.endswith((".yaml", ".yml")):
        # By the shortest way, so that the same file is the same plan to Snakemake however it is named.
        return min(Path(plan), Path(os.path.relpath(plan)), key=lambda path: len(path.parts))
    path = PLAN_FOLDER / f"{plan}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PLAN_FOLDER.glob("*.yaml")))
        raise UserError(f"{path}: no such plan; there are: {known or 'none'}")
    return path


def load_plan(path: Path) -> Plan:
    """Read, complete and check the plan at `path`.

    Raises:
        UserError: the file is missing, is not YAML, or holds an unknown key or a value of the wrong type or unit; or
            so does a recipe that one of its runs names.
    """
    raw = _read_plan(path)
    runs = run_layers(path, raw)
    try:
        # Through JSON, so that strict checking takes lists for tuples and strings for paths, and nothing else.
        return Plan.model_validate_json(json.dumps(laid_together(raw, runs)))
    except ValidationError as error:
        problem = first_problem(error, Plan)
        file, location = written_at(path, runs, problem.location)
        raise UserError(f"{file}: {dotted(location, 'plan')}: {problem.words}") from error
    except TypeError as error:
        raise UserError(f"{path}: {error}; dates and the like must be quoted") from error


def run_of(plan: Plan, run: str) -> str:
    """`run`, if the plan has a run of that name.

    Raises:
        UserError: it has none.
    """
    if run not in plan.runs:
        raise UserError(f"plan {plan.name!r} has no run {run!r}; it has: {', '.join(plan.runs) or 'none'}")
    return run


def series_settings(plan: Plan, series: str, processes: int) -> RunPlan:
    """What the plan's series of that name times on so many processes, which need not be one of its `world_sizes`.

    Raises:
        UserError: there is no such series, or its run cannot have so many processes.
    """
    if series not in plan.scaling:
        known = did_you_mean(series, plan.scaling, f"it has: {', '.join(plan.scaling) or 'none'}")
        raise UserError(f"plan {plan.name!r} has no series {series!r}{known}")
    how = plan.scaling[series]
    try:
        return how.at(processes, plan.runs[how.run])
    except ValueError as error:
        raise UserError(f"scaling.{series}: {processes} processes: {error}") from error


def _read_plan(path: Path) -> dict[str, Any]:
    raw = read_mapping(path, "a plan")
    if raw.get("name") not in (None, path.stem):
        raise UserError(f"{path}: name: {raw['name']!r} is not the file's; results go by it, so make them the same")
    return raw
