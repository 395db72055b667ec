"""What is wrong with a plan, in one line of words."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_SOURCE_KINDS = ("synthetic", "imagenet")  # pydantic names them in the location; nobody writes them there
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


class Problem(NamedTuple):
    """What is wrong, and where in the validated data."""

    location: Location
    words: str


def first_problem(error: ValidationError, model: type[BaseModel]) -> Problem:
    """The problem to name first, of those that validating as `model` found."""
    details = error.errors(include_url=False)
    # An unknown key often explains the missing one beside it, so it is named first.
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return Problem(first["loc"], f"{_in_words(first, model)}{more}")


def dotted(location: Location, otherwise: str) -> str:
    """A location as users write it, such as ``runs.a.epochs``; `otherwise` where it is empty."""
    return ".".join(str(part) for part in location if part not in _SOURCE_KINDS) or otherwise


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """The likely one of the known names as a question, or what to do `otherwise`; begins with a semicolon."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; {otherwise}"


def _in_words(detail: ErrorDetails, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        return f"unknown key{did_you_mean(key, _known_keys(model), 'workflow/schemas/plan.md lists all keys')}"
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    unit = _UNITS.get(key.rsplit("_", 1)[-1], "")
    expected = f"; a plain number, in {unit}, is expected" if unit and isinstance(detail["input"], str) else ""
    return f"{message}, got {detail['input']!r}{expected}"


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Every key that `model` may hold, at any depth."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            keys |= _known_keys(inner)
    return keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
