"""The common form of everything a plan consists of."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class PlanModel(BaseModel):
    """A block of a plan: unknown keys and values of the wrong type are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


def content_hash(model: BaseModel, *, without: frozenset[str] = frozenset(), digits: int = 10) -> str:
    """The first hexadecimal digits of the SHA-256 of the model's canonical JSON (sorted keys, defaults filled in).

    Keys in `without` are left out, so that the hash is the same as before there were any.
    """
    canonical = json.dumps(model.model_dump(mode="json", exclude=set(without)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:digits]
