"""The plan's blocks for measuring the network, predicting scale, and drawing the report."""

from __future__ import annotations

from pydantic import Field

from fourminutes.plan.base import PlanModel
from fourminutes.plan.place import PlacedPlan


class CommBenchPlan(PlacedPlan):
    """Measuring the collectives on the machines at hand."""

    processes: int = Field(4, ge=2, description="processes in all, one a device")
    group_ranks: int | None = Field(None, ge=1, description="processes a group of the hierarchical form; null: by host")
    sizes_kib: tuple[int, ...] = Field(
        (1, 16, 128, 1024, 8192), min_length=2, description="message sizes, in KiB of fp32"
    )
    repeats: int = Field(15, ge=3, description="timed calls of each size and algorithm, after the warm-up")


class ScalePlan(PlanModel):
    """Predicting other sizes from the measured runs and collectives."""

    world_sizes: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), min_length=1, description="numbers of processes to predict"
    )
    link_gbit_s: float | None = Field(
        None, gt=0, description="bandwidth between nodes to assume, in Gbit/s; null takes the measured one"
    )
    link_latency_us: float | None = Field(
        None, gt=0, description="latency of a message between nodes to assume, in microseconds; null: the measured one"
    )


class ReportPlan(PlanModel):
    """What the report draws from."""

    title: str = Field("Four Minutes", description="heading of the page")
    records: tuple[str, ...] = Field(
        (), description="globs of run records to draw from, beside the plan's own; relative to the clone's root"
    )
    comm_records: tuple[str, ...] = Field((), description="globs of collective measurements to draw from, likewise")
