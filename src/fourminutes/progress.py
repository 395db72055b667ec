"""Progress on stderr: how far, how fast, how long still."""

from __future__ import annotations

import sys
from typing import NoReturn, TypeAlias

from tqdm import tqdm

Progress: TypeAlias = "tqdm[NoReturn]"

_TERMINAL_INTERVAL_S = 0.5
_LOG_INTERVAL_S = 10.0


def progress(total: int, unit: str, description: str, *, enabled: bool = True) -> Progress:
    """A bar over `total` units: redrawn in place on a terminal, a line every ten seconds in a log."""
    interval_s = _TERMINAL_INTERVAL_S if sys.stderr.isatty() else _LOG_INTERVAL_S
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        mininterval=interval_s,
        maxinterval=interval_s,
        disable=not enabled,
        file=sys.stderr,
        dynamic_ncols=True,
    )
