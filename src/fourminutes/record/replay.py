"""The record of replayed steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourminutes.plan.replay import ReplayCase, ReplayPlan
from fourminutes.record.base import Record
from fourminutes.record.measure import CollectiveTiming
from fourminutes.record.provenance import Provenance
from fourminutes.record.run import Placement


class ReplayedCase(Record):
    """The measured steps of one case."""

    settings: ReplayCase
    step_s: tuple[float, ...] = Field(description="every timed step, that of its slowest process")
    written: str = Field(description="UTC, ISO 8601")


class ReplayRecord(Record):
    """Steps whose computing was waited for, with the real reduction; and what the collectives alone took."""

    kind: Literal["replay"] = "replay"
    settings: ReplayPlan
    tensor_bytes: tuple[int, ...] = Field(description="of every gradient in fp32, in the network's order")
    ready_s: tuple[float, ...] = Field(description="when each is ready, before it is stretched")
    placement: Placement
    provenance: Provenance
    group_ranks: int = Field(description="processes a group where a case names none")
    link: str = Field("", description="what the links are, in words")
    timings: tuple[CollectiveTiming, ...] = Field(description="the collectives by themselves, on the same processes")
    bucket_s: float | None = Field(
        None,
        description="what handing a bucket over takes besides its collective, from a row of tiny ones, in seconds; "
        "null before it is measured",
    )
    cases: dict[str, ReplayedCase]
