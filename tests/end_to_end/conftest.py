"""The demo, run once by the command that a user types, in a fresh copy of the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READY = ".venv/.ready-requirements.lock"


@dataclass(frozen=True)
class Clone:
    """A copy of the project with everything that the demo left in it."""

    folder: Path
    screen: str

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands in the clone."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"} | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


def fresh_copy(folder: Path) -> Path:
    """The files that git knows or would know, as a repository of its own, with this environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """`make demo`, done."""
    folder = fresh_copy(tmp_path_factory.mktemp("four-minutes"))
    # The environment is this one: `-o` keeps make from installing the copy into it.
    done = subprocess.run(
        ["make", "demo", "-o", READY], cwd=folder, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return Clone(folder, done.stdout)
