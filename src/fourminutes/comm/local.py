"""Several processes of one command on this machine: started together, signalled together, ended together."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Processes that fail alike end within this of one another; later than that they wait for a peer that is gone.
GRACE_S = 10.0


def run_here(command: Sequence[str], processes: int, environ: Mapping[str, str], *, grace_s: float = GRACE_S) -> int:
    """Run `command` as so many processes, with torchrun's variables; the first exit status that is not 0, or else 0.

    SIGTERM, SIGINT and SIGUSR1 are passed on to every process. Where one fails, the others have `grace_s` seconds to
    end too, then get SIGTERM, and from `grace_s` later on SIGKILL. One that signal n ended has the status 128 + n.

    Args:
        command: what each process runs, with its arguments.
        processes: their number.
        environ: their environment, to which rank, sizes and meeting point are added.
        grace_s: seconds.

    Raises:
        FileNotFoundError: there is no such command.
    """
    shared = {**environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    running: set[int] = set()
    # What comes while they are being started is held back until all are there to receive it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    with _signals_to(running):
        try:
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.add(os.posix_spawnp(command[0], list(command), shared | own, setsigmask=mask))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _first_failure(running, grace_s)


def _first_failure(running: set[int], grace_s: float) -> int:
    failure = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        code = os.waitstatus_to_exitcode(status)
        if code and not failure:
            failure = code if code > 0 else 128 - code
            signal.setitimer(signal.ITIMER_REAL, grace_s, grace_s)
    return failure


@contextmanager
def _signals_to(running: set[int]) -> Iterator[None]:
    """Pass signals on to `running`, and have the alarm end them: by SIGTERM at first, then by SIGKILL."""
    endings = itertools.chain([signal.SIGTERM], itertools.repeat(signal.SIGKILL))

    def send(number: int, frame: FrameType | None) -> None:
        passed_on = next(endings) if number == signal.SIGALRM else number
        for process in tuple(running):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, passed_on)

    before = {number: signal.signal(number, send) for number in (*FORWARDED, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
