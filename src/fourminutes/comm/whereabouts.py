"""Where this process is in its work: noted by whoever does the work, read by whoever tells the others."""

from __future__ import annotations

from dataclasses import dataclass

# A bucket's stages in the order of time; a rank that is no master passes over the middle one.
_STAGES = {"reduce": 0, "reduce_scatter": 0, "all_reduce": 1, "broadcast": 2, "all_gather": 2, "divide": 3}


@dataclass(frozen=True)
class Place:
    """A place on the way that all ranks go alike.

    Attributes:
        moves: what the process has begun so far: on all ranks as many when they begin the same thing.
        doing: what that is, as a noun.
        step: number of the step, from 1; None before the first.
        bucket: number of the bucket that is being reduced, from 0; None where none is.
        buckets: how many there are.
        stage: what is being done to it, such as ``all_reduce, across``.
    """

    moves: int = 0
    doing: str = "the start"
    step: int | None = None
    bucket: int | None = None
    buckets: int = 0
    stage: str = ""

    @property
    def order(self) -> tuple[int, int, int]:
        """Grows along the way."""
        if self.bucket is None:
            return self.moves, -1, -1
        return self.moves, self.bucket, _STAGES.get(self.stage.partition(",")[0], -1)

    def __str__(self) -> str:
        words = [] if self.step is None else [f"step {self.step}"]
        if self.bucket is None:
            return ", ".join([*words, self.doing])
        return ", ".join([*words, f"bucket {self.bucket + 1} of {self.buckets}", f"stage {self.stage}"])


class Whereabouts:
    """The place of this process, to be changed in a fraction of a microsecond.

    The thread that trains calls `begin` and `begin_step`, those that reduce call `reduce`. Of several buckets under way
    the first is the place. On a GPU a collective is done long after the host has asked for it: the bucket is then the
    one that was asked for last.
    """

    def __init__(self) -> None:
        self._work: tuple[int, str, int | None] = (0, Place.doing, None)
        self._reducing: dict[int, tuple[int, str]] = {}

    def begin(self, doing: str) -> None:
        """Something else begins. To be called by all ranks alike, so never in what only one of them does."""
        moves, _, step = self._work
        self._work = moves + 1, doing, step
        self._reducing.clear()

    def begin_step(self, step: int) -> None:
        """Step number `step`, counted from 1, is what follows."""
        self._work = self._work[0] + 1, "its beginning", step
        self._reducing.clear()

    def reduce(self, bucket: int, buckets: int, stage: str) -> None:
        """Bucket number `bucket` of `buckets` comes to `stage`; an empty one ends its way."""
        if stage:
            self._reducing[bucket] = buckets, stage
        else:
            self._reducing.pop(bucket, None)

    @property
    def place(self) -> Place:
        """As of now."""
        reducing = dict(self._reducing)  # at once, since other threads write to it
        first = min(reducing, default=None)
        return Place(*self._work) if first is None else Place(*self._work, first, *reducing[first])


#: Of this very process.
HERE = Whereabouts()
