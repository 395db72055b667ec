"""What the steps of the flow leave behind: typed, JSON, with provenance. Imports neither torch nor DALI."""

from fourminutes.record.base import Record, read_record, write_record
from fourminutes.record.dataset import ImageNote, Manifest, ShardEntry, ShardRecord, SplitSummary
from fourminutes.record.hits import Hits, digits_of, packed_hits, unpacked_hits
from fourminutes.record.measure import (
    CollectiveTiming,
    CommRecord,
    Fusion,
    Interval,
    LinkFit,
    Prediction,
    ScaleRecord,
    StageFit,
    Tuning,
)
from fourminutes.record.outdated import outdated_records, scaling_as_asked, sweep_as_asked
from fourminutes.record.profile import LayerProfile, ProfileRecord
from fourminutes.record.provenance import Provenance, code, provenance, utc_now
from fourminutes.record.replay import ReplayedCase, ReplayRecord
from fourminutes.record.run import Epoch, Placement, Reduction, RunRecord, Session, StepTimes, TracedSpan, TracedStep
from fourminutes.record.scaling import Repeat, ScalingRecord
from fourminutes.record.sweep import SweepRecord, Trial

__all__ = [
    "CollectiveTiming",
    "CommRecord",
    "Epoch",
    "Fusion",
    "Hits",
    "ImageNote",
    "Interval",
    "LayerProfile",
    "LinkFit",
    "Manifest",
    "Placement",
    "Prediction",
    "ProfileRecord",
    "Provenance",
    "Record",
    "Reduction",
    "Repeat",
    "ReplayRecord",
    "ReplayedCase",
    "RunRecord",
    "ScaleRecord",
    "ScalingRecord",
    "Session",
    "ShardEntry",
    "ShardRecord",
    "SplitSummary",
    "StageFit",
    "StepTimes",
    "SweepRecord",
    "TracedSpan",
    "TracedStep",
    "Trial",
    "Tuning",
    "code",
    "digits_of",
    "outdated_records",
    "packed_hits",
    "provenance",
    "read_record",
    "scaling_as_asked",
    "sweep_as_asked",
    "unpacked_hits",
    "utc_now",
    "write_record",
]
