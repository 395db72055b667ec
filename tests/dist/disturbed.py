"""`fourminutes` as one rank of several, of which one is disturbed: ``python disturbed.py RANK MANNER COMMAND...``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fourminutes.cli import main
from fourminutes.comm.whereabouts import HERE

STEP, BUCKET = 7, 1  # in which most manners take place


def kill() -> None:
    """In mid-reduction, as the first stage of a bucket begins."""
    reduce = HERE.reduce

    def struck(bucket: int, buckets: int, stage: str) -> None:
        reduce(bucket, buckets, stage)
        if HERE.place.step == STEP and bucket == BUCKET and "," in stage:
            os.kill(os.getpid(), signal.SIGKILL)

    HERE.reduce = struck  # type: ignore[method-assign]


def in_step(act: Callable[[], None]) -> None:
    """As the step begins."""
    begin = HERE.begin_step

    def struck(step: int) -> None:
        begin(step)
        if step == STEP:
            act()

    HERE.begin_step = struck  # type: ignore[method-assign]


def fail() -> None:
    raise ZeroDivisionError("as asked for")


MANNERS: dict[str, Callable[[], None]] = {
    "kill": kill,
    "stop": lambda: in_step(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "hang": lambda: in_step(signal.pause),
    "fail": lambda: in_step(fail),
    "late": signal.pause,
    "early kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


if __name__ == "__main__":
    rank, manner, *sys.argv = sys.argv[1:]
    Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    if rank == os.environ["RANK"]:
        MANNERS[manner]()
    main()
