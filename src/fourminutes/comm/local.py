"""Processes started for a job: signalled together, watched, and ended together."""

from __future__ import annotations

import itertools
import os
import platform
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from fourminutes.comm.board import Board, Verdict
from fourminutes.comm.launch import LISTENING_PORTS
from fourminutes.comm.watch import BOARD, Watch
from fourminutes.errors import EXIT_FAILED, UserError

# What a process that a signal ended has for a status, less the signal's number.
BY_SIGNAL = 128
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_ALL: Mapping[int, int] = {number: number for number in FORWARDED}
# Processes that fail alike end within this of one another; later than that they wait for a peer that is gone.
GRACE_S = 10.0
# After a verdict processes leave by themselves; SIGTERM comes after this, and SIGKILL after as much again.
LEAVE_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How processes ended.

    Attributes:
        status: the first exit status that is not 0, or else 0; 1 where a watch judged.
        was_told: this process was itself told to stop, and passed it on; SIGUSR1 asks to save, and to go on later.
        is_lost: a process was lost: another start may well go on.
    """

    status: int
    was_told: bool
    is_lost: bool


def run_here(
    command: Sequence[str], processes: int, environ: Mapping[str, str], *, grace_s: float = GRACE_S
) -> Outcome:
    """Run `command` as so many processes, with torchrun's variables.

    SIGTERM, SIGINT and SIGUSR1 are passed on to every process. Where one fails, the others have `grace_s` seconds to
    end too, then get SIGTERM, and from `grace_s` later on SIGKILL. One that signal n ended has the status 128 + n.

    A `Watch` is kept over those that are under watch (`watched.watched`): where it judges that the job cannot go on,
    all are ended within few seconds, stopped ones too, and the status is 1.

    Args:
        command: what each process runs, with its arguments.
        processes: their number.
        environ: their environment, to which rank, sizes, meeting point and board are added.
        grace_s: seconds.

    Raises:
        FileNotFoundError: there is no such command.
    """
    watch = Watch(Board(processes, host=platform.node()), "127.0.0.1", _end_soon)
    shared = {**environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), BOARD: watch.at("127.0.0.1")}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _run([(command, shared | variables) for variables in own], watch, watch.exited, grace_s)


def run_step(
    command: Sequence[str],
    processes: int,
    environ: Mapping[str, str],
    *,
    is_srun: bool = False,
    grace_s: float = GRACE_S,
) -> Outcome:
    """Run `command`, which starts so many processes itself, on other machines too.

    Signals are passed on and a `Watch` is kept, as by `run_here`; ending a step's processes is left to `command`. Where
    that is srun, it gets SIGUSR1 for a SIGTERM: it would not pass that on, but kill its processes at once.

    Raises:
        FileNotFoundError: there is no such command.
    """
    watch = Watch(Board(processes), "")
    own = {**environ, BOARD: watch.at(platform.node())}
    # A terminal itself tells all processes of its foreground, and srun takes the second Ctrl-C for the wish to kill.
    kept = (signal.SIGINT,) if _is_at_terminal() else ()
    passed_on: dict[int, int] = {number: number for number in FORWARDED if number not in kept}
    if is_srun:
        passed_on[signal.SIGTERM] = signal.SIGUSR1
    return _run([(command, own)], watch, lambda number, code: None, grace_s, passed_on)


def _run(
    lines: Sequence[tuple[Sequence[str], Mapping[str, str]]],
    watch: Watch,
    on_exit: Callable[[int, int], None],
    grace_s: float,
    passed_on: Mapping[int, int] = _ALL,
) -> Outcome:
    """Run every command, each with its environment, to the end of all; `on_exit` hears of each, by number and code.

    Of signals, those in `passed_on` are, as what they map to.
    """
    running: dict[int, int] = {}
    # What comes while they are being started is held back until all are there to receive it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        with _signals_to(running, passed_on) as heard:
            try:
                for number, (command, environ) in enumerate(lines):
                    running[os.posix_spawnp(command[0], list(command), environ, setsigmask=mask)] = number
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            failure = _first_failure(running, watch, on_exit, grace_s)
    finally:
        verdict = watch.close()
    was_told = any(number in (signal.SIGTERM, signal.SIGINT) for number in heard)
    if verdict is not None and verdict.line is not None:
        return Outcome(EXIT_FAILED, was_told, verdict.is_lost)
    return Outcome(failure, was_told, is_lost=failure > BY_SIGNAL)


def _first_failure(running: dict[int, int], watch: Watch, on_exit: Callable[[int, int], None], grace_s: float) -> int:
    failure = 0
    while running:
        process, status = os.wait()
        if process not in running:
            continue  # a child from before, as of a shell that has become this process
        code = os.waitstatus_to_exitcode(status)
        on_exit(running.pop(process), code)
        if code and not failure:
            failure = code if code > 0 else BY_SIGNAL - code
            signal.setitimer(signal.ITIMER_REAL, grace_s, grace_s)
            if watch.verdict is not None:
                _end_soon(watch.verdict)
    return failure


def _end_soon(verdict: Verdict) -> None:
    """Have the alarm end whoever does not leave by itself, as one that is stopped."""
    signal.setitimer(signal.ITIMER_REAL, LEAVE_S, LEAVE_S)


@contextmanager
def _signals_to(running: dict[int, int], passed_on: Mapping[int, int]) -> Iterator[list[int]]:
    """Pass signals on to `running`, as what they map to; have the alarm end them, by SIGTERM at first, then by SIGKILL.

    Gives the signals that have come.
    """
    heard: list[int] = []
    endings = itertools.chain([signal.SIGTERM], itertools.repeat(signal.SIGKILL))

    def send(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        told = next(endings) if number == signal.SIGALRM else passed_on.get(number, 0)
        for process in tuple(running):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, told)  # 0 tells nothing

    before = {number: signal.signal(number, send) for number in (*FORWARDED, signal.SIGALRM)}
    try:
        yield heard
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_at_terminal() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    """A port that rank 0 can still have in some seconds: none of those that connections get meanwhile."""
    return free_port(random.choice(LISTENING_PORTS))


def free_port(wanted: int) -> int:
    """The first port from `wanted` on that nobody listens at on this machine, of those for listening."""
    first = LISTENING_PORTS.index(wanted)
    port: int
    for port in (*LISTENING_PORTS[first:], *LISTENING_PORTS[:first]):
        with suppress(OSError), socket.create_server(("", port)):
            return port
    raise UserError(f"ports {LISTENING_PORTS[0]} to {LISTENING_PORTS[-1]}: none is free on {platform.node()}")
