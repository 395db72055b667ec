"""What a user decides: typed, checked, with units."""

from fourminutes.plan.base import PlanModel, content_hash
from fourminutes.plan.data import (
    SPLITS,
    DataPlan,
    ImageNetSource,
    ShardCounts,
    ShardRecipe,
    Split,
    SyntheticSource,
    shard_stem,
)
from fourminutes.plan.load import find_plan, load_plan, run_of
from fourminutes.plan.measure import CommBenchPlan, ReportPlan, ScalePlan
from fourminutes.plan.model import Plan
from fourminutes.plan.run import (
    BatchPlan,
    CheckpointPlan,
    LoaderPlan,
    ModelName,
    ModelPlan,
    OptimizerPlan,
    ReducePlan,
    RunPlan,
    SchedulePlan,
)

__all__ = [
    "SPLITS",
    "BatchPlan",
    "CheckpointPlan",
    "CommBenchPlan",
    "DataPlan",
    "ImageNetSource",
    "LoaderPlan",
    "ModelName",
    "ModelPlan",
    "OptimizerPlan",
    "Plan",
    "PlanModel",
    "ReducePlan",
    "ReportPlan",
    "RunPlan",
    "ScalePlan",
    "SchedulePlan",
    "ShardCounts",
    "ShardRecipe",
    "Split",
    "SyntheticSource",
    "content_hash",
    "find_plan",
    "load_plan",
    "run_of",
    "shard_stem",
]
