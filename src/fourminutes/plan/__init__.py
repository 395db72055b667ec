"""What a user decides: typed, checked, with units."""

from fourminutes.plan.base import PlanModel, content_hash
from fourminutes.plan.data import (
    SPLITS,
    DataPlan,
    ImageNetSource,
    ResplitPlan,
    ShardCounts,
    ShardRecipe,
    Split,
    SyntheticSource,
    shard_stem,
)
from fourminutes.plan.load import find_plan, load_plan, run_of
from fourminutes.plan.measure import WIRE_BYTES, CommBenchPlan, ReportPlan, ScalePlan, Wire
from fourminutes.plan.model import MlperfPlan, Plan
from fourminutes.plan.run import (
    AlgorithmChoice,
    BatchPlan,
    CheckpointPlan,
    EvaluationPlan,
    LoaderPlan,
    LossScalePlan,
    ModelName,
    ModelPlan,
    OptimizerPlan,
    Precision,
    ReducePlan,
    RunPlan,
    SchedulePlan,
)
from fourminutes.plan.sweep import ClaimPlan, ComparisonPlan, SweepPlan, TuningPlan

__all__ = [
    "SPLITS",
    "WIRE_BYTES",
    "AlgorithmChoice",
    "BatchPlan",
    "CheckpointPlan",
    "ClaimPlan",
    "CommBenchPlan",
    "ComparisonPlan",
    "DataPlan",
    "EvaluationPlan",
    "ImageNetSource",
    "LoaderPlan",
    "LossScalePlan",
    "MlperfPlan",
    "ModelName",
    "ModelPlan",
    "OptimizerPlan",
    "Plan",
    "PlanModel",
    "Precision",
    "ReducePlan",
    "ReportPlan",
    "ResplitPlan",
    "RunPlan",
    "ScalePlan",
    "SchedulePlan",
    "ShardCounts",
    "ShardRecipe",
    "Split",
    "SweepPlan",
    "SyntheticSource",
    "TuningPlan",
    "Wire",
    "content_hash",
    "find_plan",
    "load_plan",
    "run_of",
    "shard_stem",
]
