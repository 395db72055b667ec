"""A file that is written and hashed while its contents are still being made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self

Buffer = bytes | memoryview


class HashedWriter:
    """Writes and hashes what it is given, in order, in a thread each; both leave Python's lock to the caller.

    Use it as a context; buffers given to it must not change until they are done with.
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

    def write(self, piece: Buffer, done: Callable[[], None] = lambda: None) -> None:
        """Append `piece`; `done` is called when it is no longer needed. Megabytes at a time are fastest.

        Raises:
            OSError: an earlier write failed.
        """
        self._raise_failures()
        both = (
            self._writer.submit(self._write, piece, self.size),
            self._hasher.submit(self._sha256.update, piece),
        )
        last_of_both = iter((False, True))
        for future in both:
            future.add_done_callback(lambda _: done() if next(last_of_both) else None)
        self._pending += both
        self.size += len(piece)

    def finish(self) -> str:
        """Wait until everything is on the disk; returns the SHA-256.

        Raises:
            OSError: a write failed.
        """
        self._pending.append(self._writer.submit(os.fsync, self._descriptor))
        for future in self._pending:
            future.result()
        return self._sha256.hexdigest()

    def _raise_failures(self) -> None:
        self._pending = [future for future in self._pending if not future.done() or future.exception()]
        for future in self._pending:
            if future.done():
                future.result()

    def _write(self, piece: Buffer, position: int) -> None:
        rest = memoryview(piece)
        while rest:  # an almost full disk takes a part, and refuses the rest
            rest = rest[os.write(self._descriptor, rest) :]
        # A way to say that the disk may begin; else all of it would wait for the sync at the end.
        os.posix_fadvise(self._descriptor, position, len(piece), os.POSIX_FADV_DONTNEED)
