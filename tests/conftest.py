"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The small real data sets in ImageNet's layout that lie beside the clone; absent elsewhere than in development."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("shared/data is not beside the clone; in CI it must be")
        pytest.skip("shared/data is not beside the clone")
    return folder
