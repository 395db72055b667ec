"""What an all-reduce takes by the times that were measured, on as many processes. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fourminutes.comm.tuner import Curve, Way, curves_of
from fourminutes.errors import UserError
from fourminutes.plan import Wire
from fourminutes.record import CollectiveTiming
from fourminutes.scale.network import Part


@dataclass(frozen=True)
class Measured:
    """Measured medians, straight lines between sizes and beyond the largest one (`Costs`).

    What the smallest message takes is latency, which buckets in other lanes use the links beside; all above it is time
    on the wire, which they share.

    Attributes:
        processes: how many were measured, and can be asked for.
        curves: by algorithm and ranks a group.
        bucket_s: what a bucket takes besides its collective, in seconds.
    """

    processes: int
    curves: Mapping[Way, Curve]
    bucket_s: float = 0.0

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """One stage that is the whole.

        Raises:
            UserError: that arrangement, or that number of processes, was not measured.
        """
        is_flat = algorithm == "ring" or group_ranks == 1  # groups of one are the ring
        way = ("ring", self.processes) if is_flat else (algorithm, group_ranks)
        if processes != self.processes or way not in self.curves:
            raise UserError(
                f"{algorithm} over {processes} processes in groups of {way[1]}: was not measured; measure it first"
            )
        curve = self.curves[way]
        whole_s = curve.at(message_bytes)
        latency_s = min(whole_s, curve.seconds[0])
        return (Part(algorithm, "outer", latency_s + self.bucket_s, whole_s - latency_s),)


def measured(
    timings: Sequence[CollectiveTiming], processes: int, wire: Wire, bucket_s: float | None = None
) -> Measured:
    """From the timings in that number format."""
    return Measured(processes, curves_of([timing for timing in timings if timing.wire == wire]), bucket_s or 0.0)
