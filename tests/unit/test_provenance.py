"""What a record says of the code that it was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fourminutes.record import code


@pytest.mark.parametrize(
    ("changed", "dirty"), [("train.py", True), ("results/mine/run.json", False), ("dvc.lock", False), (None, False)]
)
def test_changed_code_makes_a_clone_dirty_and_new_results_do_not(
    changed: str | None, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("results/mine").mkdir(parents=True)
    for name in ("train.py", "results/mine/run.json", "dvc.lock"):
        Path(name).write_text("as committed")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], check=True)
    if changed:
        Path(changed).write_text("as changed")
    code.cache_clear()
    try:
        assert code()[1] is dirty
    finally:
        code.cache_clear()
