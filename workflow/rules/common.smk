"""The plan, and the names of everything made from it. No rule lives here."""

import glob
import os
import sys

from fourminutes.errors import EXIT_BAD_INPUT, UserError
from fourminutes.plan import SPLITS, find_plan, load_plan, shard_stem

try:
    PLAN_FILE = find_plan(str(config["plan"]))
    PLAN = load_plan(PLAN_FILE)
except UserError as error:
    print(f"fourminutes: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)

# So that `.venv/bin/snakemake` finds its own commands without an activated environment, and that what a command says is
# seen and kept until it ends: a `tee` that Ctrl-C ends first would take the command along in the middle of its checkpoint.
shell.prefix(
    f'set -euo pipefail; export PATH="{os.path.dirname(sys.executable)}:$PATH"; '
    "log_to() (trap '' INT TERM HUP USR1; tee \"$1\" >&2); "
)

RESULTS = str(PLAN.results)
LOGS = f"logs/{PLAN.name}"
MANIFEST = str(PLAN.manifest) if PLAN.data else []
DATA_FOLDER = str(PLAN.data.folder) if PLAN.data else ""
# A shard's index and record come with it, so its tar stands for all three.
SHARDS = [
    f"{DATA_FOLDER}/{shard_stem(split, shard, PLAN.data.shards.of(split))}.tar"
    for split in (SPLITS if PLAN.data else ())
    for shard in range(PLAN.data.shards.of(split))
]
RUN_RECORDS = [str(PLAN.run_record(run)) for run in PLAN.runs]
SWEEP_RECORDS = [str(PLAN.sweep_record(sweep)) for sweep in PLAN.sweeps]
COMM_RECORD = str(PLAN.comm_record) if PLAN.comm else []
SCALE_RECORD = str(PLAN.scale_record) if PLAN.scale else []


def launch_options(settings):
    """How `fourminutes launch` starts the processes of a run or of a measurement."""
    return f"--processes {settings.processes} --per-node {settings.per_node} --threads {settings.cores}"


def placement(settings):
    """The resources of a job of one process a device, from which Slurm's executor makes its sbatch line."""
    return {
        "nodes": settings.nodes,
        "cpus_per_task": settings.cores,
        # The executor refuses `mpi` with one process, and wants `tasks_per_node` from two on a node, else `tasks`.
        "mpi": "srun" if settings.processes > 1 else None,
        "tasks_per_node": settings.per_node if settings.per_node > 1 else None,
        "tasks": (settings.processes if settings.processes > settings.per_node == 1 else None),
    }
