"""A replay's record whose every number can be worked out by hand."""

from fourminutes.plan import ModelPlan, ReducePlan
from fourminutes.plan.replay import ReplayCase, ReplayPlan
from fourminutes.record import CollectiveTiming, Placement, ReplayedCase, ReplayRecord, provenance

MIB = 2**20
_PROVENANCE = provenance()  # once, so that the record is the same each time
#: Steps of each case; the simulation is off by +10 %, 0 and -20 % of their medians.
STEP_S = {
    "one by one": (0.99, 1.0, 1.01),
    "fused": (1.0, 1.1, 1.2),
    "small": (0.69, 0.7, 0.71),
    "pairs": (0.39, 0.4, 0.41),
}


def timing(algorithm: str, group_ranks: int, message_bytes: int, median_s: float) -> CollectiveTiming:
    """Without spread."""
    return CollectiveTiming(
        algorithm=algorithm,
        group_ranks=group_ranks,
        message_bytes=message_bytes,
        repeats=5,
        median_s=median_s,
        lower_quartile_s=median_s,
        upper_quartile_s=median_s,
        bus_gbyte_s=1.0,
    )


def replay_record() -> ReplayRecord:
    """Four gradients over four ranks: two of 1 MiB, two of 16 KiB; forward 0.1 s, update 0.1 s.

    A ring takes 0.05 s and 0.1 s a MiB more, from 16 KiB on 0.05 s; pairs half of that.
    """
    cases = {
        "one by one": ReplayCase(backward_s=0.4, reduce=ReducePlan(bucket_mib=0.001, lanes=1)),
        "fused": ReplayCase(backward_s=0.4, reduce=ReducePlan(bucket_mib=25, lanes=1)),
        "small": ReplayCase(backward_s=0.2, tensors="small", reduce=ReducePlan(bucket_mib=0.001, lanes=1)),
        "pairs": ReplayCase(
            backward_s=0.2,
            tensors="small",
            reduce=ReducePlan(algorithm="hierarchical", group_ranks=2, bucket_mib=0.001, lanes=1),
        ),
    }
    return ReplayRecord(
        settings=ReplayPlan(model=ModelPlan(name="resnet50"), forward_s=0.1, optimizer_s=0.1, repeats=3, cases=cases),
        tensor_bytes=(MIB, 16 * 1024, MIB, 16 * 1024),
        ready_s=(2.0, 1.5, 1.0, 0.5),
        placement=Placement(launcher="torchrun", hosts=("a", "b", "c", "d"), device="cpu", backend="gloo"),
        provenance=_PROVENANCE,
        group_ranks=1,
        link="made up",
        timings=tuple(
            timing(algorithm, group, size, factor * seconds)
            for algorithm, group, factor in (("ring", 4, 1.0), ("hierarchical", 2, 0.5))
            for size, seconds in ((16 * 1024, 0.05), (MIB + 16 * 1024, 0.15))
        ),
        cases={
            name: ReplayedCase(settings=case, step_s=STEP_S[name], written="2026-11-20T09:00:00+00:00")
            for name, case in cases.items()
        },
    )
