"""What a measurement of the collectives is asked for on the command line, as settings. No torch."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from fourminutes.comm.launch import resolve_launch
from fourminutes.errors import UserError
from fourminutes.plan import CommBenchPlan

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_LEAST_BYTES, _MOST_BYTES = "256", "256M"
_OPTIONS = {"group_ranks": "groups", "sizes_kib": "max-size"}


def bench_settings(
    planned: CommBenchPlan | None,
    *,
    min_size: str | None,
    max_size: str | None,
    step_factor: int,
    groups: str | None,
    wires: str | None,
    algorithms: str | None,
    repeats: int | None,
) -> CommBenchPlan:
    """The plan's settings, or those for all processes that there are, with what the options say in their place.

    Raises:
        UserError: an option cannot be read.
    """
    given: dict[str, Any] = {} if planned else {"processes": max(2, resolve_launch().world_size)}
    if planned is None or min_size or max_size:
        given["sizes_kib"] = _sizes_kib(min_size or _LEAST_BYTES, max_size or _MOST_BYTES, step_factor)
    if groups:
        given["group_ranks"] = group_ranks_of(groups)
    given |= {name: tuple(text.split(",")) for name, text in (("wires", wires), ("algorithms", algorithms)) if text}
    given |= {"repeats": repeats} if repeats else {}
    try:
        return CommBenchPlan.model_validate((planned.model_dump() if planned else {}) | given)
    except ValidationError as error:
        first = error.errors()[0]
        option = _OPTIONS.get(str(first["loc"][0]), first["loc"][0])
        raise UserError(f"--{option}: {first['msg']} (given: {first['input']})") from error


def group_ranks_of(groups: str | None) -> tuple[int, ...]:
    """What `--groups` asks for, such as ``2,4``.

    Raises:
        UserError: it cannot be read.
    """
    return tuple(_whole("--groups", part) for part in groups.split(",")) if groups else ()


def size_in_bytes(name: str, text: str) -> int:
    """A size as nccl-tests writes it: bytes, or with K, M or G for powers of 1,024.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]*)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{name} {text}: is no size; give bytes, or K, M or G, such as 256 or 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


def _sizes_kib(smallest: str, largest: str, factor: int) -> tuple[float, ...]:
    low, high = size_in_bytes("--min-size", smallest), size_in_bytes("--max-size", largest)
    if not 256 <= low < high:
        raise UserError(f"--min-size {smallest}, --max-size {largest}: must be 256 bytes and more, and rise")
    sizes = [low]
    while sizes[-1] * factor <= high:
        sizes.append(sizes[-1] * factor)
    return tuple(size / 1024 for size in dict.fromkeys([*sizes, high]))


def _whole(name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) == 0:
        raise UserError(f"{name}: {text!r} is no whole number above 0; give such as 2,4,8")
    return int(text)
