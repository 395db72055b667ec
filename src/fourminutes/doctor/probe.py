"""Looking at things that may hang, crash or be absent: every look has a limit in time, and no failure goes further."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import NoReturn

from fourminutes.doctor.finding import Finding, Findings, Group, Mark, one_line

_CLEANING_S = 3.0
# What hangs or breaks there keeps a plan from running.
_NO_PLAN_WITHOUT: frozenset[Group] = frozenset({"file systems", "archives"})


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
        with _uninterrupted():
            for look in looks:
                look.send(signal.SIGTERM)
            for look in looks:
                look.end()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Leave a second Ctrl-C unheard, which would leave jobs and files behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Look:
    """One examiner at work, in a process at the head of a process group."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self._begin_s = monotonic()
        self._answer, answer = Pipe(duplex=False)
        # By hand, since multiprocessing would wait for it at the end, whatever it hangs in.
        self._pid = os.fork()
        with suppress(OSError):  # both do it, whoever comes first
            os.setpgid(self._pid, 0)
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

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to the commands it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, number)

    def end(self) -> None:
        """End what was told to end: it may clean up, but what hangs in the kernel is not waited for."""
        with suppress(OSError):
            self._answer.poll(_CLEANING_S)  # its end is readable, as an answer is
        self.send(signal.SIGKILL)
        self._answer.close()


def _work(examiner: Examiner, answer: Connection) -> NoReturn:
    """Look, send what is found, and end this process; when it is told to end, files of its own go first."""
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
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
    mark: Mark = "missing" if group in _NO_PLAN_WITHOUT else "warn"
    findings.add(mark, group, found, "mend that, or report it, and look again")
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
