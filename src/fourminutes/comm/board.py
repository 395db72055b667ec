"""What is known of every rank, and from it, which of them the others miss. No process, socket or clock is in here."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fourminutes.comm.whereabouts import Place
from fourminutes.errors import EXIT_BAD_INPUT, EXIT_FAILED

# From the first bad news on, others' may be on their way, and those of where the others wait.
SETTLE_S = 1.0
# Who lives says so several times in this.
QUIET_S = 3.0
# Ranks that refuse something alike do so within this of one another.
ALIKE_S = 10.0
# Ranks lost at one moment, as with their host; whoever goes later may have been ended for the first one's sake.
TOGETHER_S = 0.1
_MOST_NAMED = 8


@dataclass(frozen=True)
class Verdict:
    """The job cannot go on.

    Attributes:
        ranks: on whose account.
        line: which they are, where, and what to do; None where they have said it themselves.
        is_lost: they were lost or late: another start may well go on, where a failure of their own would come again.
    """

    ranks: tuple[int, ...]
    line: str | None
    is_lost: bool = False


@dataclass
class _Rank:
    """What a rank has said of itself, and when, in seconds by the board's own clock."""

    host: str
    heard_s: float
    moved_s: float
    place: Place = field(default_factory=Place)
    status: int | None = None
    failure: str = ""
    is_collectives: bool = False
    failed_s: float | None = None
    lost_s: float | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has neither ended nor been lost."""
        return self.status is None and self.lost_s is None

    @property
    def trouble_s(self) -> float | None:
        """When it first gave cause for worry."""
        return self.lost_s if self.failed_s is None else self.failed_s


class Board:
    """Hears of the ranks, and judges.

    A rank that waits for others still gives signs of life. So one that gives none is lost, and one whose collective
    failed is not to blame while there is such a one, or one that failed in another way, or is behind all others.

    Args:
        world_size: number of ranks.
        host: where ranks are that have not come, if that is known.
    """

    def __init__(self, world_size: int, host: str = "") -> None:
        self.world_size = world_size
        self._host = host
        self._ranks: dict[int, _Rank] = {}
        self._exits: dict[int, tuple[int, float]] = {}
        self._timeout_s = 0.0
        self._again = ""
        self._began_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no rank has come yet."""
        return not self._ranks

    def come(self, rank: int, message: Mapping[str, Any], now_s: float) -> None:
        """A rank is there: on which `host`, after how many seconds one is lost, and what to do `again` then.

        Raises:
            ValueError, KeyError: no rank would say this.
        """
        if rank not in range(self.world_size):
            raise ValueError(f"there is no rank {rank}")
        if self.is_empty:
            self._began_s = now_s
        self._timeout_s = max(self._timeout_s, float(message["timeout_s"]))
        self._again = str(message["again"])
        self._ranks[rank] = _Rank(str(message["host"]), now_s, now_s)

    def hear(self, rank: int, message: Mapping[str, Any], now_s: float) -> None:
        """A rank tells its `place`, and maybe that it ends with a `status`, or what `failure` it met."""
        known, place = self._ranks[rank], Place(**message["place"])
        known.heard_s = now_s
        if place != known.place:
            known.place, known.moved_s = place, now_s
        if "status" in message:
            known.status = int(message["status"])
            if known.status in (EXIT_FAILED, EXIT_BAD_INPUT):
                known.failed_s = now_s
        if "failure" in message:
            known.failure, known.is_collectives = str(message["failure"]), bool(message["is_collectives"])
            known.failed_s = now_s

    def lose(self, rank: int, now_s: float) -> None:
        """A rank's line is broken; that is no news of one that has said that it ends or fails."""
        known = self._ranks[rank]
        if known.status is None and known.failed_s is None:
            known.lost_s = now_s

    def exited(self, rank: int, code: int, now_s: float) -> None:
        """A rank's process is no more; `code` is as `subprocess` has it."""
        self._exits[rank] = code, now_s

    def verdict(self, now_s: float, *, is_last: bool = False) -> Verdict | None:
        """Whether the job can go on (None), or on whose account it cannot.

        Args:
            now_s: by the clock of what was heard.
            is_last: no more will be heard: judge from what is known.
        """
        self._count_in_who_never_came()
        troubled = {rank: known.trouble_s for rank, known in self._ranks.items() if known.trouble_s is not None}
        if not troubled:
            return None if is_last or self.is_empty else self._overdue(now_s)
        began_s = min(troubled.values())
        since_s = float("inf") if is_last else now_s - began_s
        if lost := [rank for rank in troubled if self._is_lost_by(rank, began_s + SETTLE_S)]:
            return self._lost(lost, now_s) if since_s >= SETTLE_S else None
        if own := [rank for rank in troubled if self._ranks[rank].failure and not self._ranks[rank].is_collectives]:
            return self._failed(own[0]) if since_s >= SETTLE_S else None
        is_waited_for = any(self._ranks[rank].is_collectives for rank in troubled)
        if refused := [rank for rank in troubled if self._ranks[rank].status is not None]:
            return Verdict(tuple(refused), None) if since_s >= (QUIET_S if is_waited_for else ALIKE_S) else None
        return self._who_broke_it(began_s, now_s) if since_s >= QUIET_S else None

    def _count_in_who_never_came(self) -> None:
        """A rank that ended before it came is known by its end, where others have come."""
        for rank in [] if self.is_empty else self._absent:
            if rank in self._exits:
                code, when_s = self._exits[rank]
                known = self._ranks[rank] = _Rank(self._host, when_s, when_s)
                if code < 0:
                    known.lost_s = when_s
                else:
                    known.status, known.failed_s = code, when_s if code else None

    def _is_lost_by(self, rank: int, moment_s: float) -> bool:
        """Whether the rank's line broke by then, and not after another's, which may be why."""
        lost_s = self._ranks[rank].lost_s
        first_s = min((known.lost_s for known in self._ranks.values() if known.lost_s is not None), default=0.0)
        return lost_s is not None and lost_s <= min(moment_s, first_s + TOGETHER_S)

    def _overdue(self, now_s: float) -> Verdict | None:
        """Where nothing has failed yet: who should long have come, spoken or moved."""
        if now_s - self._began_s < self._timeout_s:
            return None
        if absent := self._absent:
            return self._late(absent)
        under_way = {rank: known for rank, known in self._ranks.items() if known.is_under_way}
        if silent := [rank for rank, known in under_way.items() if now_s - known.heard_s >= self._timeout_s]:
            return self._lost(silent, now_s)
        moved_s = max((known.moved_s for known in under_way.values()), default=now_s)
        return self._stuck(under_way, now_s - moved_s) if now_s - moved_s >= self._timeout_s else None

    def _who_broke_it(self, began_s: float, now_s: float) -> Verdict:
        """Whose fault it is that collectives failed, and nothing else did."""
        under_way = {rank: known for rank, known in self._ranks.items() if known.is_under_way}
        if silent := [rank for rank, known in under_way.items() if known.heard_s < began_s]:
            return self._lost(silent, now_s)
        if absent := self._absent:
            return self._late(absent)
        first = min((one.failed_s, rank) for rank, one in under_way.items() if one.failed_s is not None)[1]
        if "timed out" in under_way[first].failure.lower():
            return self._stuck(under_way, self._timeout_s) or self._failed(first)
        return self._failed(first)

    @property
    def _absent(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank not in self._ranks]

    def _lost(self, ranks: list[int], now_s: float) -> Verdict:
        first = self._ranks[ranks[0]]
        others = [known.place for rank, known in self._ranks.items() if rank not in ranks and known.status is None]
        missed = min(others, key=lambda place: place.order, default=first.place)
        is_later = missed.order > first.place.order
        where = f", last heard of in {first.place}, missed in {missed}" if is_later else f" in {first.place}"
        how = self._how(ranks[0]) if first.lost_s is not None else f"no sign of life for {now_s - first.heard_s:.0f} s"
        return self._said(ranks, f"{_was(ranks)} lost ({how}){where}", is_lost=True)

    def _how(self, rank: int) -> str:
        """How a rank's process ended."""
        code, _ = self._exits.get(rank, (None, 0.0))
        if code is None:
            return "its line is broken"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def _late(self, ranks: list[int]) -> Verdict:
        what = f"did not come within {self._timeout_s:g} s of the first of {self.world_size}"
        return self._said(ranks, what, is_lost=True)

    def _failed(self, rank: int) -> Verdict:
        known = self._ranks[rank]
        return self._said([rank], f"failed in {known.place}: {known.failure}")

    def _stuck(self, under_way: Mapping[int, _Rank], for_s: float) -> Verdict | None:
        """Whoever is behind all others, where nobody moves; None where all are at one place."""
        orders = {rank: known.place.order for rank, known in under_way.items()}
        behind = [rank for rank, order in orders.items() if order == min(orders.values())]
        others = [under_way[rank].place for rank in orders if rank not in behind]
        if not others:
            return None
        missed, own = min(others, key=lambda place: place.order), under_way[behind[0]].place
        what = f"{_was(behind)} stuck for {for_s:.0f} s in {own}, missed in {missed}"
        return self._said(behind, what, is_lost=True)

    def _said(self, ranks: list[int], what: str, *, is_lost: bool = False) -> Verdict:
        return Verdict(tuple(ranks), f"{self._named(ranks)} {what}; {self._again}", is_lost)

    def _named(self, ranks: list[int]) -> str:
        """Such as: ranks 2, 3 on node7, rank 8 on node9."""
        by_host: dict[str, list[int]] = {}
        for rank in sorted(ranks)[:_MOST_NAMED]:
            by_host.setdefault(self._ranks[rank].host if rank in self._ranks else self._host, []).append(rank)
        named = ", ".join(f"{_ranks(own)}{f' on {host}' if host else ''}" for host, own in by_host.items())
        return named if len(ranks) <= _MOST_NAMED else f"{named} and {len(ranks) - _MOST_NAMED} more"


def _ranks(ranks: Iterable[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(numbers)}"


def _was(ranks: list[int]) -> str:
    return "was" if len(ranks) == 1 else "were"
