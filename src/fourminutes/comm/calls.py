"""Timed calls of an arrangement at one size, and what they come to. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fourminutes.plan import Wire
from fourminutes.record import CollectiveTiming


@dataclass(frozen=True)
class StageCalls:
    """One stage of the calls: what it added to the time of each.

    Attributes:
        stage: the collective, and among whom.
        payload_bytes: what a rank hands over to it.
        seconds: of every call.
    """

    stage: str
    payload_bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Calls:
    """Timed calls of one arrangement at one size; a call's time is that of its slowest rank.

    Attributes:
        group_ranks: processes a group; all of them for the ring.
        message_bytes: on the wire.
        seconds: of every call.
        stages: the same calls by stages.
    """

    algorithm: str
    group_ranks: int
    wire: Wire
    message_bytes: int
    seconds: tuple[float, ...]
    stages: tuple[StageCalls, ...]

    def timing(self, processes: int) -> CollectiveTiming:
        """Quartiles, and the bus bandwidth of nccl-tests, for every algorithm alike: 2(P-1)/P M/t, t the median."""
        lower, median, upper = np.quantile(self.seconds, (0.25, 0.5, 0.75)).tolist()
        return CollectiveTiming(
            algorithm=self.algorithm,
            group_ranks=self.group_ranks,
            wire=self.wire,
            message_bytes=self.message_bytes,
            repeats=len(self.seconds),
            median_s=median,
            lower_quartile_s=lower,
            upper_quartile_s=upper,
            bus_gbyte_s=2 * (processes - 1) / processes * self.message_bytes / median / 1e9,
        )
