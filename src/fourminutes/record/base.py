"""Records: what a step of the flow leaves behind, as readable JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fourminutes.errors import UserError
from fourminutes.files import write_text


class Record(BaseModel):
    """A block of a record: unknown keys are refused, nothing changes after writing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write `record` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Read a record of the given kind.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such record") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: is no {kind.__name__}: {where or 'file'}: {first['msg']}") from error
