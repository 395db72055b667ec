"""A rank under watch: it tells the board where it is, and ends when the board says that the job cannot go on."""

from __future__ import annotations

import json
import os
import platform
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.watch import BOARD
from fourminutes.comm.whereabouts import HERE
from fourminutes.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, RunFailed, UserError

_BEAT_S = 0.4
# What a rank that fails with the others has for leaving in order, before it is ended wherever it is.
_LEAVE_S = 0.5
# What a rank that fails by its own fault has for showing it.
_SHOW_S = 10.0
# The board judges within few seconds; more only where its machine is overloaded.
_JUDGED_WITHIN_S = 30.0
_SIGNS_OF_COLLECTIVES = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "store->")


@contextmanager
def watched(*, timeout_s: float, again: str) -> Iterator[None]:
    """Within this, the ranks of a launch watch over one another.

    A rank that dies, or gives no sign of life for `timeout_s`, ends all others too. One line names it, its host and
    where it was missed. It comes from `fourminutes launch`, which watches from the start; where something else started
    the ranks, from a process beside rank 0 that does so from `watch_from_first` on. Before that a rank hears of a lost
    one by its collectives alone, and says for itself where.

    Args:
        timeout_s: how long the others wait for a rank, in seconds.
        again: what to do after a failure, in words.

    Raises:
        UserError: whoever watches cannot be reached.
        RunFailed: touch with another rank is lost, and nobody watches yet.
    """
    launch = resolve_launch()
    if launch.world_size == 1:
        yield
        return
    post = _Post(launch.rank, timeout_s, again)
    _posts.append(post)
    status = EXIT_FAILED
    try:
        # Another number there is for whoever started these ranks, as a torchrun on each node, and not for them.
        if (board := os.environ.get(BOARD, "")).startswith(f"{launch.world_size}@"):
            post.line = Line(board, post)
        yield
        status = 0
    except (Interrupted, UserError, RunFailed) as error:
        status = {Interrupted: EXIT_INTERRUPTED, UserError: EXIT_BAD_INPUT}.get(type(error), EXIT_FAILED)
        raise
    except Exception as error:
        post.fail(error)
        raise
    finally:
        _posts.remove(post)
        post.leave(status)


def watch_from_first(launch: Launch) -> None:
    """Where ranks are under watch but nobody watches yet, let a process beside rank 0 do so; it outlives that rank.

    To be called by all ranks, inside `process_group`. The process ends by itself when all ranks have.
    """
    if not _posts or _posts[-1].line is not None:
        return
    from torch import distributed

    post, boards = _posts[-1], [""]
    if launch.is_first:
        post.watch = _start_watch(launch)
        assert post.watch.stdout is not None
        boards = [post.watch.stdout.readline().strip()]
    distributed.broadcast_object_list(boards, src=0)
    post.line = Line(boards[0], post)


def _start_watch(launch: Launch) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fourminutes.comm.watch", str(launch.world_size), launch.host_of_first]
    # A session of its own: what a terminal or a launcher tells the ranks is not for it.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@dataclass
class _Post:
    """A rank that is under watch, or would be if anybody watched."""

    rank: int
    timeout_s: float
    again: str
    line: Line | None = None
    watch: subprocess.Popen[str] | None = None

    def fail(self, error: Exception) -> None:
        """Returns where `error` is this rank's own, and is to be shown."""
        if self.line is not None:
            self.line.fail(error)
        elif is_of_collectives(error):
            raise RunFailed(
                f"rank {self.rank} on {platform.node()} lost touch with another in {HERE.place} "
                f"({in_a_line(error)}); {self.again}"
            ) from error

    def leave(self, status: int) -> None:
        """This rank ends."""
        if self.line is not None:
            self.line.leave(status)
        if self.watch is not None:
            with suppress(subprocess.TimeoutExpired):
                self.watch.wait(_SHOW_S)  # the others leave too


#: That of this process, while it is under watch.
_posts: list[_Post] = []


class Line:
    """The line to the board, with a thread that speaks on it several times a second, whatever the others wait for.

    Where the board's answer comes, or the board is gone, the process is ended: on no other thread's goodwill, since
    those may wait in a collective, on a CPU or (untested) a GPU, for a rank that is no more. What is written meanwhile
    is written aside, so that what was safe stays so.
    """

    def __init__(self, board: str, post: _Post) -> None:
        host, _, port = board.partition("@")[2].rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=post.timeout_s)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{BOARD}: {board} cannot be reached from {platform.node()} ({error}); let the nodes' firewalls pass "
                "connections between them"
            ) from error
        self._socket.settimeout(None)
        self._speaking = threading.Lock()
        self._is_leaving = self._shows = False
        self._over = threading.Event()
        self._blamed: list[int] = []
        self._rank = post.rank
        known = {"rank": post.rank, "timeout_s": post.timeout_s, "again": post.again}
        self._send({"host": platform.node(), **known})
        threading.Thread(target=self._keep_in_touch, name="watched", daemon=True).start()

    def leave(self, status: int) -> None:
        """This process ends now, in order, with this exit status."""
        self._is_leaving = True
        self._tell(status=status)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends the thread

    def fail(self, error: Exception) -> None:
        """This process met `error`. Returns where that is its own fault, and is to be shown; else the process ends."""
        self._shows = not is_of_collectives(error)
        self._tell(failure=in_a_line(error), is_collectives=not self._shows)
        is_judged = self._over.wait(_JUDGED_WITHIN_S)
        if not self._shows or (is_judged and self._rank not in self._blamed):
            _end()

    def _keep_in_touch(self) -> None:
        while not select.select([self._socket], [], [], _BEAT_S)[0]:
            self._tell()
        if self._is_leaving:
            self._socket.close()
            return
        with suppress(OSError, ValueError):
            self._blamed = json.loads(self._socket.makefile().readline())["over"]
        self._over.set()
        time.sleep(_SHOW_S if self._shows else _LEAVE_S)
        _end()

    def _tell(self, **more: Any) -> None:
        self._send({"place": vars(HERE.place), **more})

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._speaking, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")


def is_of_collectives(error: BaseException) -> bool:
    """Whether it, or what it arose from, is how torch's collectives fail when another process is gone or late.

    gloo's failures are plain RuntimeErrors, told by their words; NCCL's and the store's have a class of their own.
    """
    if isinstance(error, RuntimeError):
        words = str(error).lower()
        if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
            return True
        if any(sign in words for sign in _SIGNS_OF_COLLECTIVES):
            return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_of_collectives(cause)


def in_a_line(error: BaseException) -> str:
    """An error's kind and its first words."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _end() -> NoReturn:
    """End this process as failed, whatever its threads are in."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_FAILED)
