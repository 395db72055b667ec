"""The plan's JSON schema and the page that lists every key, both made from the models.

``python -m fourminutes.plan.schema`` writes them; a test fails where the written ones differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fourminutes.files import write_text
from fourminutes.plan.data import ImageNetSource, SyntheticSource
from fourminutes.plan.model import Plan
from fourminutes.plan.replay import ReplayCase, ReplayPlan
from fourminutes.plan.run import RunPlan
from fourminutes.plan.scaling import ScalingPlan

SCHEMA_FOLDER = Path("workflow/schemas")


def documents() -> dict[str, str]:
    """The generated documents by file name."""
    return {"plan.schema.json": _json_schema(), "plan.md": _reference()}


def _json_schema() -> str:
    return json.dumps(Plan.model_json_schema(), indent=2) + "\n"


def _reference() -> str:
    lines = ["# Every key of a plan", "", "Made from the models by `python -m fourminutes.plan.schema`.", ""]
    lines += _section("Plan", Plan)
    lines += _section("`data.source`, `kind: synthetic`", SyntheticSource)
    lines += _section("`data.source`, `kind: imagenet`", ImageNetSource)
    lines += _section("A run (`runs.<name>`, and `defaults`)", RunPlan)
    lines += _section("A measured series (`scaling.<name>`)", ScalingPlan)
    lines += _section("Steps to replay (`fourminutes scale replay`), a file of their own", ReplayPlan)
    lines += _section("One of its cases (`cases.<name>`)", ReplayCase)
    return "\n".join(lines)


def _section(title: str, model: type[BaseModel]) -> list[str]:
    rows = [f"| `{key}` | {default} | {text} |" for key, default, text in _rows(model)]
    return [f"## {title}", "", "| key | default | meaning |", "|---|---|---|", *rows, ""]


def _rows(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        inner = _block(field.annotation)
        if inner is not None:
            rows += _rows(inner, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, _default(field), field.description or ""))
    return rows


def _block(annotation: Any) -> type[BaseModel] | None:
    """The one model that a key holds, if it holds one (and not a mapping or a choice of several)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    is_optional = type(None) in get_args(annotation)
    return models[0] if len(models) == 1 and is_optional else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else None
    if field.default_factory is not None:
        return "empty"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    if value in (None, ""):
        return "null" if value is None else "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    for file_name, text in documents().items():
        write_text(SCHEMA_FOLDER / file_name, text)
