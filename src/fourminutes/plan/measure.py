"""The plan's blocks for measuring the network, predicting scale, and drawing the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from fourminutes.plan.base import PlanModel
from fourminutes.plan.place import PlacedPlan
from fourminutes.plan.run import ArrangementName, Wire


class CommBenchPlan(PlacedPlan):
    """Measuring the collectives on the machines at hand."""

    processes: int = Field(4, ge=2, description="processes in all, one a device")
    algorithms: tuple[ArrangementName, ...] = Field(
        ("ring", "hierarchical", "torus"),
        min_length=1,
        description="arrangements; torus only where all groups are of one size",
    )
    group_ranks: tuple[int, ...] = Field(
        (), description="processes a group, each size measured; empty: by host, or pairs where all share one host"
    )
    wires: tuple[Wire, ...] = Field(("fp32",), min_length=1, description="number formats on the wire")
    sizes_kib: tuple[float, ...] = Field(
        (1, 16, 128, 1024, 8192), min_length=2, description="message sizes on the wire, in KiB; 0.25 and more"
    )
    repeats: int = Field(15, ge=3, description="timed calls of each size and algorithm, after the warm-up")

    @property
    def sizes_bytes(self) -> tuple[int, ...]:
        """Message sizes in bytes, whole numbers of fp32's four."""
        return tuple(4 * max(1, round(size * 256)) for size in self.sizes_kib)

    @field_validator("sizes_kib")
    @classmethod
    def _are_sizes(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.25 <= size <= 4 * 2**20 for size in sizes):
            raise ValueError("must lie within 0.25 and 4,194,304 KiB")
        return sizes

    @field_validator("group_ranks", mode="before")
    @classmethod
    def _is_one_or_several(cls, groups: object) -> object:
        """One size is as good as a list of one; null was once the way to say by host."""
        if isinstance(groups, list):
            return tuple(groups)
        return () if groups is None else (groups,) if isinstance(groups, int) else groups

    @field_validator("group_ranks")
    @classmethod
    def _are_groups(cls, groups: tuple[int, ...]) -> tuple[int, ...]:
        if not all(group >= 1 for group in groups):
            raise ValueError("a group has at least one process")
        return groups


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
    node_ranks: int = Field(
        1, ge=1, description="processes a node to assume, which share the node's link; 1 takes all links as alike"
    )
    inner_gbit_s: float | None = Field(
        None, gt=0, description="bandwidth inside a node to assume, in Gbit/s; null takes the measured ring's"
    )
    inner_latency_us: float | None = Field(
        None,
        gt=0,
        description="latency of a message inside a node to assume, in microseconds; null: the measured ring's",
    )
    has_trees: bool = Field(
        False,
        description="whether the library's own all-reduce may take trees, as NCCL's does from 2.4 on; with node_ranks "
        "from 2 on",
    )
    spread_percent: float = Field(
        2,
        ge=0,
        le=100,
        description="standard deviation of a process's computing from step to step to assume, in percent of it; the "
        "slowest of all is waited for",
    )


class ReportPlan(PlanModel):
    """What the report draws from."""

    title: str = Field("Four Minutes", description="heading of the page")
    records: tuple[str, ...] = Field(
        (), description="globs of run records to draw from, beside the plan's own; relative to the clone's root"
    )
    comm_records: tuple[str, ...] = Field((), description="globs of collective measurements to draw from, likewise")
    replays: tuple[str, ...] = Field((), description="globs of replayed steps to hold the prediction against, likewise")
    scaling_records: tuple[str, ...] = Field((), description="globs of measured series to draw from, likewise")
    profiles: tuple[str, ...] = Field((), description="globs of profiles of one device to draw from, likewise")
    scale_record: str | None = Field(
        None, description="record of predictions to draw from in place of the plan's own, likewise"
    )
    expects: tuple[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")], ...] = Field(
        (), description="runs of other plans, as PLAN/RUN, that keep their row in the tables while they have no record"
    )
