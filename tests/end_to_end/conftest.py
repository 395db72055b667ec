"""The demo, run once by the command that a user types, in a fresh copy of the clone."""

from __future__ import annotations

import pytest
from support.clone import READY, Demo, fresh_clone


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`make demo`, done."""
    clone = fresh_clone(tmp_path_factory.mktemp("four-minutes"))
    done = clone.run("make", "demo", "-o", READY)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return Demo(clone, done.stdout)
