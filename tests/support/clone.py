"""A copy of the project to run Snakemake and DVC in, as a user would in a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The environment of a clone is this one: `make -o READY` doesn't install the clone into it.
READY = ".venv/.ready-requirements.lock"


@dataclass(frozen=True)
class Clone:
    """A copy of the project, and the environment's commands in it."""

    folder: Path

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands in the clone."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=_environ() | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )

    def environ(self) -> dict[str, str]:
        """The environment that its commands get."""
        return _environ()

    def must(self, *command: str, **environ: str) -> str:
        """Run a command that has to succeed; what it printed on both streams."""
        done = self.run(*command, **environ)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-8000:]
        return printed

    def commit(self) -> None:
        """Commit all that git doesn't ignore."""
        for command in (["add", "-A"], ["commit", "-q", "-m", "as it is now"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start one of the environment's commands in the clone, as the head of a process group of its own."""
        silent = subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=self.folder, env=_environ(), stdout=silent, stderr=silent, start_new_session=True
        )


@contextmanager
def working(clone: Clone, command: Sequence[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the clone beside the block, whose end is its end too; what it says goes to a file."""
    with said.open("w") as file:
        process = subprocess.Popen(command, cwd=clone.folder, env=clone.environ(), stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    """Wait until something holds that `process` brings about.

    Raises:
        AssertionError: the process ended first.
    """
    while not holds():
        with suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it ended with {process.wait(timeout=0.05)} before it came so far")


@dataclass(frozen=True)
class Demo:
    """The clone with everything that the demo left in it, and what it showed."""

    clone: Clone
    screen: str


def fresh_clone(folder: Path) -> Clone:
    """The files that git knows or would know, as a repository of its own, with this environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    made = ("results/", "dvc.lock", "data/")  # by whoever ran the workflow here before the tests
    for name in (name for name in listed.stdout.split("\0") if name and not name.startswith(made)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    clone = Clone(folder)
    _settle(clone)
    clone.commit()
    return clone


def second_clone(first: Clone, folder: Path) -> Clone:
    """What `git clone` makes of the first one's last commit, with this environment."""
    subprocess.run(["git", "clone", "-q", str(first.folder), str(folder)], check=True)
    clone = Clone(folder)
    _settle(clone)
    return clone


def _settle(clone: Clone) -> None:
    (clone.folder / ".venv").symlink_to(ROOT / ".venv")
    for key, value in {"user.name": "test", "user.email": "test@localhost"}.items():
        subprocess.run(["git", "config", key, value], cwd=clone.folder, check=True)


def _environ() -> dict[str, str]:
    return os.environ | {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}


def planned_jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run of Snakemake ends with; empty where nothing is to be done."""
    _, _, table = output.partition("Job stats:")
    counts = re.findall(r"^(\w+)\s+(\d+)$", table.partition("Reasons:")[0], re.MULTILINE)
    return {name: int(count) for name, count in counts}
