"""What a plan needs, from the plan alone: jobs, pictures, bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass

from fourminutes.plan import ModelPlan, Plan, RunPlan, Split, SyntheticSource
from fourminutes.plan.place import PlacedPlan

_KNOWN_PARAMETERS = {"alexnet": 62_378_344, "alexnet_bn": 62_381_096, "resnet50": 25_557_032, "resnet_small": 78_042}
"""At width 1 (`fourminutes.models`); for 1,000 classes, `resnet_small` for 10."""
_FP32_BYTES = 4
_WRITING_AND_EPOCH_END = 2
"""Checkpoints beside the newest `keep`: the one that is being written, and an epoch's end."""


@dataclass(frozen=True)
class Job:
    """One job of the plan, as Snakemake submits it.

    Attributes:
        name: of the run, sweep or measurement.
        rule: Snakemake's rule, by which the profile sets resources.
        nodes: number of nodes.
        per_node: processes on each node.
        cores: CPU cores of each process.
        gpus: GPUs on each node; 0 where it takes what it finds.
    """

    name: str
    rule: str
    nodes: int
    per_node: int
    cores: int
    gpus: int = 0

    @property
    def node_cores(self) -> int:
        """CPU cores on each node."""
        return self.per_node * self.cores


def jobs_of(plan: Plan | None) -> tuple[Job, ...]:
    """Every job of the plan that starts processes of its own: runs, sweeps, the measured collectives and series."""
    if plan is None:
        return ()
    runs = [(name, "train_run", run) for name, run in plan.runs.items()]
    sweeps = [(name, "sweep", sweep.run) for name, sweep in plan.sweeps.items()]
    comm = [("comm bench", "comm_bench", plan.comm)] if plan.comm else []
    scaling = [
        (f"{name} on {size}", "measure_scaling", series.at(size, plan.runs[series.run]))
        for name, series in plan.scaling.items()
        for size in series.world_sizes
    ]
    placed: list[tuple[str, str, PlacedPlan]] = [*runs, *sweeps, *comm, *scaling]
    return tuple(_job(name, rule, what) for name, rule, what in placed)


def _job(name: str, rule: str, placed: PlacedPlan) -> Job:
    gpus = placed.per_node if placed.device == "gpu" else 0
    return Job(name, rule, placed.nodes, placed.per_node, placed.cores, gpus)


def needs_pictures(plan: Plan) -> bool:
    """Whether anything is left to do that reads pictures; else the records alone are drawn."""
    records = [*map(plan.run_record, plan.runs), *map(plan.sweep_record, plan.sweeps)]
    for name, series in plan.scaling.items():
        if series.input == "real":
            records += [plan.scaling_record(name, size) for size in series.world_sizes]
    return plan.data is not None and not all(path.is_file() for path in (plan.manifest, *records))


def images_of(plan: Plan) -> dict[Split, int] | None:
    """Images by split where the plan itself tells: drawn, drawn anew, or expected to be a known set's."""
    from fourminutes.data.manifest import KNOWN

    data = plan.data
    if data is None:
        return None
    if data.resplit:
        return {"train": data.resplit.train, "val": data.resplit.val}
    if isinstance(data.source, SyntheticSource):
        source = data.source
        return {"train": source.classes * source.train_per_class, "val": source.classes * source.val_per_class}
    return {**KNOWN[data.expect].images} if data.expect else None


def parameters_of(model: ModelPlan) -> int:
    """Trained parameters, about: the known number times the width squared, as nearly all layers grow."""
    return round(_KNOWN_PARAMETERS[model.name] * model.width**2)


def checkpoint_bytes(run: RunPlan, parameters: int) -> int:
    """What a run writes to the work folder at most: weights and momentum in fp32, of each checkpoint that is kept.

    Beside the newest `keep` there are the newest of an epoch's end and the one that is being written, and the best and
    the final weights.
    """
    states = run.checkpoint.keep + _WRITING_AND_EPOCH_END
    weights = 1 + run.checkpoint.keep_best
    return parameters * _FP32_BYTES * (2 * states + weights)
