"""Progress on stderr: how far, how fast, how long still."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import NoReturn, TypeAlias

from tqdm import tqdm

Progress: TypeAlias = "tqdm[NoReturn]"

_TERMINAL_INTERVAL_S = 0.5
_LOG_INTERVAL_S = 10.0


class _Stderr:
    """Stderr for progress: whole lines where it is no terminal; that nobody reads it any more ends no work."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()

    def write(self, text: str) -> None:
        """Write `text`; for a log without the signs that move a terminal's cursor."""
        line = text if self.is_terminal else text.strip()
        with suppress(OSError):
            if line:
                sys.stderr.write(line if self.is_terminal else f"{line}\n")

    def flush(self) -> None:
        """Pass on what was written."""
        with suppress(OSError):
            sys.stderr.flush()


def progress(total: int, unit: str, description: str, *, enabled: bool = True) -> Progress:
    """A bar over `total` units: redrawn in place on a terminal, a line every ten seconds in a log."""
    stderr = _Stderr()
    interval_s = _TERMINAL_INTERVAL_S if stderr.is_terminal else _LOG_INTERVAL_S
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        mininterval=interval_s,
        maxinterval=interval_s,
        disable=not enabled,
        file=stderr,
        dynamic_ncols=stderr.is_terminal,
        ncols=None if stderr.is_terminal else 0,
    )
