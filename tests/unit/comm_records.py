"""Hand-made measurements of collectives, as links of given latency and bandwidth would give them."""

from fourminutes.plan import CommBenchPlan
from fourminutes.record import (
    CollectiveTiming,
    CommRecord,
    LinkFit,
    Placement,
    provenance,
)
from fourminutes.scale.fitted import Fitted
from fourminutes.scale.network import Link, total_s

ALGORITHMS = ("ring", "hierarchical", "torus")


def allreduce_time(algorithm: str, message_bytes: float, processes: int, link: Link, group_ranks: int) -> float:
    """By one link for all messages."""
    return total_s(Fitted({algorithm: link}).parts(algorithm, message_bytes, processes, group_ranks))


def timing(algorithm: str, size: int, median_s: float, group_ranks: int = 4) -> CollectiveTiming:
    return CollectiveTiming(
        algorithm=algorithm,
        group_ranks=group_ranks,
        message_bytes=size,
        repeats=5,
        median_s=median_s,
        lower_quartile_s=median_s,
        upper_quartile_s=median_s,
        bus_gbyte_s=1,
    )


def timings_of(link: Link, processes: int = 16) -> list[CollectiveTiming]:
    return [
        timing(algorithm, size, allreduce_time(algorithm, size, processes, link, 4))
        for algorithm in ALGORITHMS
        for size in (1024, 131_072, 8_388_608)
    ]


def comm_record(link: Link) -> CommRecord:
    return CommRecord(
        plan="test",
        settings=CommBenchPlan(processes=16, group_ranks=4),
        placement=Placement(launcher="torchrun", hosts=("a",) * 16, device="cpu", backend="gloo"),
        provenance=provenance(),
        timings=tuple(timings_of(link)),
        fits=tuple(
            LinkFit(algorithm=algorithm, alpha_s=link.latency_s, bandwidth_byte_s=link.bandwidth_byte_s)
            for algorithm in ALGORITHMS
        ),
    )
