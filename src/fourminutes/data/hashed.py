"""A file that is written and hashed while its contents are still being made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self

Buffer = bytes | memoryview

_PIECES_PER_WRITE = 512  # the system takes 1,024 at most


class HashedWriter:
    """Writes and hashes what it is given, in order, in a thread each; both leave Python's lock to the caller.

    Use it as a context; buffers given to it must not change until `finish`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._sha256 = hashlib.sha256()
        # One thread each, so that each takes the pieces in the order given.
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self.size = 0
        """Of all that was given, in bytes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in (self._writer, self._hasher):
            thread.shutdown(cancel_futures=True)

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Append `pieces`.

        Raises:
            OSError: an earlier write failed.
        """
        done = [future for future in self._pending if future.done()]
        for future in done:
            future.result()
        self._pending = [future for future in self._pending if future not in done]
        self._pending += (self._writer.submit(self._write, pieces), self._hasher.submit(self._hash, pieces))
        self.size += sum(map(len, pieces))

    def finish(self) -> str:
        """Wait until everything is on the disk; returns the SHA-256.

        Raises:
            OSError: a write failed.
        """
        self._pending.append(self._writer.submit(os.fsync, self._descriptor))
        for future in self._pending:
            future.result()
        return self._sha256.hexdigest()

    def _hash(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            self._sha256.update(piece)

    def _write(self, pieces: Sequence[Buffer]) -> None:
        """Many pieces at a time: one by one they would straddle pages, and cost twice the time."""
        for start in range(0, len(pieces), _PIECES_PER_WRITE):
            group = pieces[start : start + _PIECES_PER_WRITE]
            written = os.writev(self._descriptor, group)
            if written < sum(map(len, group)):  # an almost full disk takes a part, and refuses the rest
                rest = memoryview(b"".join(group))[written:]
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
