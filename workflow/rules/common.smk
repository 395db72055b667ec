"""The plan, and the names of everything made from it. No rule lives here."""

import glob
import os
import sys

from fourminutes.errors import UserError
from fourminutes.plan import SPLITS, find_plan, load_plan, shard_stem

try:
    PLAN_FILE = find_plan(str(config["plan"]))
    PLAN = load_plan(PLAN_FILE)
except UserError as error:
    sys.exit(f"fourminutes: {error}")

# So that `.venv/bin/snakemake` finds its own commands without an activated environment.
shell.prefix(f'set -euo pipefail; export PATH="{os.path.dirname(sys.executable)}:$PATH"; ')

RESULTS = str(PLAN.results)
LOGS = f"logs/{PLAN.name}"
MANIFEST = str(PLAN.manifest) if PLAN.data else []
DATA_FOLDER = str(PLAN.data.folder) if PLAN.data else ""
SHARDS = [
    f"{DATA_FOLDER}/{shard_stem(split, shard, PLAN.data.shards.of(split))}{ending}"
    for split in (SPLITS if PLAN.data else ())
    for shard in range(PLAN.data.shards.of(split))
    for ending in (".tar", ".idx", ".json")
]
RUN_RECORDS = [str(PLAN.run_record(run)) for run in PLAN.runs]
COMM_RECORD = str(PLAN.comm_record) if PLAN.comm else []
SCALE_RECORD = str(PLAN.scale_record) if PLAN.scale else []


def processes_of(settings):
    """The resources of a job of several processes, which the Slurm executor turns into its sbatch line."""
    if settings.processes == 1:
        return {"nodes": 1}
    per_node = settings.processes_per_node or settings.processes
    return {"nodes": settings.processes // per_node, "mpi": "srun", "tasks_per_node": per_node}
