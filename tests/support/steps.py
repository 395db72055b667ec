"""A plan of short trainings over two nodes, and what is seen of them from outside while they run."""

from __future__ import annotations

import json
from typing import Any

from support.clone import Clone

#: `short` lasts some tens of seconds here; `long` longer than Slurm takes to find a node gone.
PLAN = """
name: steps
data:
  dataset: steps
  source: {kind: synthetic, classes: 4, train_per_class: 64, val_per_class: 16, side_px: 64}
  shards: {train: 4, val: 1}
  max_broken_percent: 5
defaults:
  processes: 2
  processes_per_node: 1
  lost_after_s: 30
  model: {name: resnet_small, image_px: 48}
  loader: {threads: 1, chunk_images: 16, shuffle_window_images: 64}
  batch: {global_batch: 32, per_device: 16}
  schedule: {base_rate: 0.05}
  checkpoint: {every_steps: 3}
runs:
  short: {epochs: 40}
  long: {epochs: 120}
  tuned: {epochs: 40, reduce: {algorithm: auto}}
"""


def train(run: str) -> list[str]:
    """The command that trains a run on the cluster, and nothing else."""
    return ["snakemake", f"results/steps/runs/{run}.json", "--profile", "slurm", "--config", "plan=steps"]


def record_of(clone: Clone, run: str) -> dict[str, Any]:
    """The record of a finished run."""
    return json.loads((clone.folder / f"results/steps/runs/{run}.json").read_text())  # type: ignore[no-any-return]


def step_of(clone: Clone, run: str) -> int:
    """The step of a run's newest checkpoint; 0 while there is none."""
    markers = clone.folder.glob(f"work/steps/{run}-*/step-*/complete.json")
    return max((int(marker.parent.name.removeprefix("step-")) for marker in markers), default=0)


def job_of(clone: Clone, run: str) -> str:
    """The Slurm job that trains a run."""
    lease = json.loads((clone.folder / f"work/steps/{run}.lease.json").read_text())
    return str(lease["holder"]["job"])


def log_of(clone: Clone, run: str) -> str:
    """What a run's starts have said."""
    path = clone.folder / f"logs/steps/train/{run}.log"
    return path.read_text() if path.exists() else ""


def logs(clone: Clone) -> str:
    """The ends of what all jobs said."""
    paths = [*clone.folder.glob(".snakemake/slurm_logs/**/*.log"), *clone.folder.glob("logs/steps/train/*.log")]
    return "\n".join(path.read_text()[-3000:] for path in paths)
