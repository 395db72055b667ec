"""Reading a plan from YAML; whatever is wrong with it becomes one line."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fourminutes.errors import UserError
from fourminutes.plan.model import Plan

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
        UserError: the file is missing, is not YAML, or holds an unknown key or a value of the wrong type or unit.
    """
    raw = _read_yaml(path)
    try:
        # Through JSON, so that strict checking takes lists for tuples and strings for paths, and nothing else.
        return Plan.model_validate_json(json.dumps(_with_defaults(raw)))
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error, raw)}") from error
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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(), _UniqueKeys)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such plan file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: is not a plan; a plan is a mapping that starts with 'name:'")
    if raw.get("name") not in (None, path.stem):
        raise UserError(f"{path}: name: {raw['name']!r} is not the file's; results go by it, so make them the same")
    return raw


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is, but for keys that come twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse the second key of a name."""
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} comes twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """The plan with its `defaults` laid under every run."""
    runs, defaults = raw.get("runs"), raw.get("defaults")
    if not isinstance(runs, dict) or not isinstance(defaults, dict):
        return raw
    return raw | {"runs": {name: _merged(defaults, run if run is not None else {}) for name, run in runs.items()}}


def _merged(under: Any, over: Any) -> Any:
    """`over` laid on `under`, key by key where both are mappings."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return under | {key: _merged(under[key], value) if key in under else value for key, value in over.items()}


def _first_problem(error: ValidationError, raw: dict[str, Any]) -> str:
    details = error.errors(include_url=False)
    # An unknown key often explains the missing one beside it, so it is named first.
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in _written_at(first["loc"], raw) if part not in _SOURCE_KINDS) or "plan"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {_in_words(first)}{more}"


def _written_at(location: tuple[str | int, ...], raw: dict[str, Any]) -> tuple[str | int, ...]:
    """Where the user wrote what is wrong: in the run itself, or in the defaults that lie under it."""
    if location[:1] != ("runs",) or len(location) < 3:
        return location
    inner: Any = (raw["runs"] or {}).get(location[1])
    for key in location[2:]:
        if not isinstance(inner, dict) or key not in inner:
            return ("defaults", *location[2:]) if location[2] in (raw.get("defaults") or {}) else location
        inner = inner[key]
    return location


def _in_words(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key{_suggestion(str(detail['loc'][-1]))}"
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    unit = _UNITS.get(key.rsplit("_", 1)[-1], "")
    expected = f"; a plain number, in {unit}, is expected" if unit and isinstance(detail["input"], str) else ""
    return f"{message}, got {detail['input']!r}{expected}"


_SOURCE_KINDS = ("synthetic", "imagenet")
_UNITS = {
    "px": "pixels",
    "mib": "MiB",
    "kib": "KiB",
    "percent": "percent",
    "epochs": "epochs",
    "steps": "steps",
    "us": "microseconds",
    "s": "Gbit/s",
    "images": "images",
}


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, _known_keys(Plan), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "; workflow/schemas/plan.md lists all keys"


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Every key that a plan may hold, at any depth."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            keys |= _known_keys(inner)
    return keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
