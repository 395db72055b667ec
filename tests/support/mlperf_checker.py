"""MLPerf's own compliance checker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def failures(path: Path) -> list[str]:
    """What MLPerf's compliance checker finds wrong with the log, a line each."""
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--ruleset", "4.0.0", "--usage", "training"]
    checked = subprocess.run(
        [*command, "--log_output", str(path.with_suffix(".checked")), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    found = re.findall(
        r"^(?:WARNING -\s+)?((?:Failed|CHECK|Required|failed|Log lines).*)$", checked.stderr, re.MULTILINE
    )
    assert (checked.returncode == 0) == (not found), checked.stderr
    return found
