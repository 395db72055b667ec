"""Records of measured collectives and of predictions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan import AlgorithmChoice, CommBenchPlan, ScalePlan, Wire
from fourminutes.record.base import Record
from fourminutes.record.provenance import Provenance
from fourminutes.record.run import Placement


class CollectiveTiming(Record):
    """One algorithm at one size; a call's time is that of its slowest rank."""

    algorithm: str
    group_ranks: int = Field(description="processes a group; the world size for a flat algorithm")
    wire: Wire = "fp32"
    message_bytes: int = Field(description="on the wire")
    repeats: int
    median_s: float
    lower_quartile_s: float
    upper_quartile_s: float
    bus_gbyte_s: float = Field(description="2(P-1)/P x bytes / median, in 10^9 bytes/s, as nccl-tests defines it")


class LinkFit(Record):
    """t = steps x alpha + bytes moved / bandwidth, fitted to one algorithm's medians."""

    algorithm: str
    group_ranks: int | None = Field(None, description="processes a group; none where it was not noted")
    wire: Wire = "fp32"
    alpha_s: float = Field(description="latency of one step")
    bandwidth_byte_s: float


class Interval(Record):
    """A fitted number, between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class StageFit(Record):
    """t = alpha + beta x payload, fitted to one stage's calls in one arrangement."""

    algorithm: str
    stage: str = Field(description="the collective, and among whom: all ranks, a group, the groups")
    group_ranks: int
    wire: Wire
    alpha_s: Interval = Field(description="latency, of all its steps together")
    beta_s_byte: Interval = Field(description="seconds a byte that a rank hands over to it")
    sizes: int = Field(description="number of sizes that it was fitted to")


class CommRecord(Record):
    """Measured collectives."""

    kind: Literal["comm"] = "comm"
    plan: str
    settings: CommBenchPlan
    placement: Placement
    provenance: Provenance
    timings: tuple[CollectiveTiming, ...]
    fits: tuple[LinkFit, ...]
    stages: tuple[StageFit, ...] = ()


class Fusion(Record):
    """What one bucket size is predicted to leave exposed, buckets being exact and reduced one after another."""

    bucket_mib: float = Field(description="size up to which gradients are fused, in MiB of fp32")
    buckets: int
    exposed_s: float = Field(description="communication after the backward pass")


class Tuning(Record):
    """Which arrangement for which size of message, and which bucket size, on the processes at hand."""

    kind: Literal["tuning"] = "tuning"
    plan: str
    run: str = Field(description="run whose model the bucket size is for; empty for none")
    group_ranks: int | None = Field(None, description="reduce.group_ranks, for choices that name no groups")
    wire: Wire
    placement: Placement
    provenance: Provenance
    took_s: float
    timings: tuple[CollectiveTiming, ...]
    stages: tuple[StageFit, ...]
    choices: tuple[AlgorithmChoice, ...] = Field(min_length=1)
    ready_s: tuple[float, ...] = Field(
        description="when each gradient is ready, from the begin of the backward pass, in the model's order"
    )
    fusions: tuple[Fusion, ...]
    bucket_mib: float | None = Field(description="the bucket size chosen; null without a model")


class Prediction(Record):
    """One run at another number of processes, the batch of each process kept (weak scaling)."""

    run: str
    algorithm: str
    processes: int
    step_s: float = Field(description="expected, over the spread of the slowest process")
    step_low_s: float | None = Field(None, description="2.5 % of steps are shorter; null in records of the first model")
    step_high_s: float | None = Field(None, description="2.5 % of steps are longer; likewise")
    exposed_reduce_s: float = Field(description="communication after the last gradient is ready")
    late_s: float = Field(0.0, description="waiting for the slowest process's computing")
    idle_percent: float = Field(0.0, description="share of the step in which a process computes nothing")
    images_per_s: float
    efficiency_percent: float = Field(description="against one process")


class ScaleRecord(Record):
    """Predictions from measured runs and collectives."""

    kind: Literal["scale"] = "scale"
    plan: str
    settings: ScalePlan
    provenance: Provenance
    assumptions: tuple[str, ...] = Field(description="one sentence each, for the report")
    predictions: tuple[Prediction, ...]
