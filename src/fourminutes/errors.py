"""The ways in which a command may stop short without a traceback."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75


class UserError(Exception):
    """Bad input or environment: one line that names the thing and the way out (exit 2)."""


class RunFailed(Exception):
    """What was asked for was tried and did not come out, such as a loss that is no number (exit 1)."""


class Interrupted(Exception):
    """Stopped before the end with everything needed to go on saved (exit 75)."""
