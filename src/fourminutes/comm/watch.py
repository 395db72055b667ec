"""A board outside the ranks, which outlives any of them: ranks tell it where they are, and hear who is missed.

Ranks come over TCP and speak in lines of JSON, at first ``{"rank", "host", "timeout_s", "again"}``, then, several times
a second, what `Board.hear` takes. The answer, once there is one, is ``{"over": [ranks on whose account]}``.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fourminutes.comm.board import Board, Verdict

BOARD = "FOURMINUTES_BOARD"
"""The environment variable in which ranks find their number and their board, as ``4@host:port``."""

_TICK_S = 0.1
_COME_WITHIN_S = 60.0
_MOST_BYTES = 65_536


class Watch:
    """Serves a board in a thread, from its making to `close`, and says on stderr what it judges.

    Args:
        board: of the ranks that are to come.
        address: the network interface at which they do; an empty one is any.
        on_verdict: is called in the thread, once, after the line is said.
    """

    def __init__(self, board: Board, address: str, on_verdict: Callable[[Verdict], None] | None = None) -> None:
        self.verdict: Verdict | None = None
        self._board = board
        self._on_verdict = on_verdict or (lambda verdict: None)
        self._listener = socket.create_server((address, 0), backlog=4096)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._now_s = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="watch", daemon=True)
        self._thread.start()

    def at(self, host: str) -> str:
        """What `BOARD` is to be for ranks that reach this machine as `host`."""
        return f"{self._board.world_size}@{host}:{self._listener.getsockname()[1]}"

    def exited(self, rank: int, code: int) -> None:
        """A rank's process is no more; `code` is as that of `subprocess`."""
        self._board.exited(rank, code, self._now_s)

    def close(self) -> Verdict | None:
        """Serve no longer; returns the verdict, which is now given where it was pending. All ranks have ended."""
        if self._closing:
            return self.verdict
        self._closing = True
        self._thread.join()
        for line in self._lines:
            line.connection.close()
        self._selector.close()
        self._listener.close()
        return self.verdict

    def wait_for_ranks(self, within_s: float) -> None:
        """Return when there is a verdict, or when no rank is connected any more, or has come `within_s` seconds."""
        deadline_s = time.monotonic() + within_s
        while self.verdict is None and (self._lines or (self._board.is_empty and time.monotonic() < deadline_s)):
            time.sleep(_TICK_S)

    @property
    def _lines(self) -> list[_Line]:
        return [key.data for key in list(self._selector.get_map().values()) if key.data is not None]

    def _serve(self) -> None:
        while not self._closing:
            since_s = time.monotonic()
            for key, _ in self._selector.select(_TICK_S):
                self._answer_door() if key.data is None else self._hear(key.data)
            # Time in which this very process was stopped, as by Ctrl-Z, is nobody's delay.
            self._now_s += min(time.monotonic() - since_s, 2 * _TICK_S)
            self._judge(is_last=False)
        for line in self._lines:
            self._hear(line)
        self._judge(is_last=True)

    def _answer_door(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, _Line(connection))

    def _hear(self, line: _Line) -> None:
        """Take down what has come over the line; what makes no sense comes from no rank, and ends it."""
        try:
            for message in line.read():
                if line.rank is None:
                    self._board.come(message["rank"], message, self._now_s)
                    line.rank = message["rank"]
                else:
                    self._board.hear(line.rank, message, self._now_s)
        except (OSError, ValueError, KeyError, TypeError):
            line.is_open = False
        if not line.is_open:
            self._selector.unregister(line.connection)
            line.connection.close()
            if line.rank is not None:
                self._board.lose(line.rank, self._now_s)

    def _judge(self, *, is_last: bool) -> None:
        if self.verdict is not None:
            return
        verdict = self._board.verdict(self._now_s, is_last=is_last)
        if verdict is None:
            return
        if verdict.line is not None:
            # A bar may stand in a terminal's last line.
            print(f"{chr(10) * sys.stderr.isatty()}fourminutes: {verdict.line}", file=sys.stderr, flush=True)
        self.verdict = verdict
        answer = json.dumps({"over": verdict.ranks}).encode() + b"\n"
        for line in self._lines:
            with suppress(OSError):
                line.connection.send(answer)
        self._on_verdict(verdict)


def main() -> None:
    """Watch, from a process of its own: over how many ranks, and by which name they reach it, are the arguments.

    Prints on stdout what `BOARD` is to be.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the ranks, which may still want to save
    world_size, host = sys.argv[1:]
    watch = Watch(Board(int(world_size)), "")
    print(watch.at(host), flush=True)
    watch.wait_for_ranks(_COME_WITHIN_S)
    watch.close()


class _Line:
    """One rank's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank: int | None = None
        self.is_open = True
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """The whole messages that have come."""
        with suppress(BlockingIOError):
            while piece := self.connection.recv(_MOST_BYTES):
                self._rest += piece
                if len(self._rest) > _MOST_BYTES:
                    raise ValueError("no rank says so much at once")
            self.is_open = False
        *whole, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in whole]


if __name__ == "__main__":
    main()
