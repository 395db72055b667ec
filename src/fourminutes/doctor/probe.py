"""Looking at things that may hang, crash or be absent: every look has a limit in time, and no failure goes further."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import NoReturn

from fourminutes.doctor.finding import Finding, Findings, Group, one_line


@dataclass(frozen=True)
class Examiner:
    """Looks at one group of things.

    Attributes:
        group: the group.
        look: does it; called in a process of its own.
        limit_s: seconds after which it is given up; None waits for ever.
    """

    group: Group
    look: Callable[[], list[Finding]]
    limit_s: float | None = 60


def look_at_all(examiners: Sequence[Examiner]) -> Iterator[Finding]:
    """What all examiners find, in their order; they look at the same time.

    Each has a process of its own, since a look at a dead file server cannot be ended within this one. What hangs or
    breaks is a finding.
    """
    looks: list[_Look] = []
    try:
        looks += [_Look(examiner) for examiner in examiners]
        for look in looks:
            yield from look.findings()
    finally:
        for look in looks:
            look.end()


class _Look:
    """One examiner at work, in a process at the head of a process group."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self._begin_s = monotonic()
        self._answer, answer = Pipe(duplex=False)
        # By hand, since multiprocessing would wait for it at the end, whatever it hangs in.
        self._pid = os.fork()
        if self._pid == 0:
            _work(examiner, answer)
        answer.close()

    def findings(self) -> list[Finding]:
        """What came out, waiting for it as long as the examiner may take."""
        limit_s = self._examiner.limit_s
        left_s = None if limit_s is None else max(0.0, limit_s - (monotonic() - self._begin_s))
        try:
            if not self._answer.poll(left_s):
                return _failure(self._examiner.group, f"no answer within {limit_s:g} s: what is looked at hangs")
            found: list[Finding] = self._answer.recv()
        except (EOFError, OSError):
            return _failure(self._examiner.group, "the look at it was ended before it had an answer")
        return found

    def end(self) -> None:
        """Kill what is left of it; what hangs in the kernel dies when it may, and is not waited for."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self._pid, signal.SIGKILL)
        self._answer.close()


def _work(examiner: Examiner, answer: Connection) -> NoReturn:
    """Look, send what is found, and end this process."""
    try:
        os.setpgid(0, 0)
        answer.send(_looked(examiner))
    finally:
        os._exit(0)


def _looked(examiner: Examiner) -> list[Finding]:
    try:
        return examiner.look()
    except Exception as error:  # whatever it is, the other findings count
        return _failure(examiner.group, f"could not be looked at: {type(error).__name__}: {error}")


def _failure(group: Group, found: str) -> list[Finding]:
    findings = Findings(group)
    findings.add("warn", group, found, "mend that, or report it, and look again")
    return findings.all


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int | None
    """Exit status, negative for a signal; None where there is no such command, or it was ended for its time."""
    stdout: str
    stderr: str

    @property
    def is_good(self) -> bool:
        """Whether it ended with status 0."""
        return self.status == 0

    @property
    def complaint(self) -> str:
        """What it said against the question, in one line: the last ones of stderr."""
        return one_line(" ".join(self.stderr.splitlines()[-2:])) or f"status {self.status}"


def ask(*command: str, limit_s: float = 20, folder: Path | None = None) -> Answer:
    """Run a command to its end; where there is none, or it takes longer than `limit_s`, the answer says so."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"{command[0]}: no answer within {limit_s:g} s")
    except OSError as error:
        return Answer(None, "", f"{command[0]}: {error.strerror}")
    return Answer(done.returncode, done.stdout, done.stderr)
