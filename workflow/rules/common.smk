"""The plan, and the names of everything made from it. No rule lives here."""

import glob
import os
import sys

from fourminutes.errors import EXIT_BAD_INPUT, UserError
from fourminutes.plan import SPLITS, find_plan, load_plan, shard_stem, speed_hash

try:
    PLAN_FILE = find_plan(str(config["plan"]))
    PLAN = load_plan(PLAN_FILE)
except UserError as error:
    print(f"fourminutes: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)

# So that `.venv/bin/snakemake` finds its own commands without an activated environment. Containers have a path of their own.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))

# So that what a command says is seen and kept until it ends: a `tee` that Ctrl-C ends first would take the command along
# in the middle of its checkpoint.
shell.prefix(
    "set -euo pipefail; "
    "log_to() (trap '' INT TERM HUP USR1; tee \"$1\" >&2); "
    # Of what may be interrupted and go on: with what earlier starts said.
    "log_on() (trap '' INT TERM HUP USR1; tee --append \"$1\" >&2); "
    # The shell itself stays until its command has ended, which a signal reaches too.
    "trap : TERM USR1; "
)

# Draw what is here, and make nothing for it: cells of records that are not here stay empty.
DRAW_ONLY = str(config.get("draw_only", False)).lower() in ("true", "1", "yes")

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
SCALING_RECORDS = [str(path) for path in PLAN.scaling_records]
COMM_RECORD = str(PLAN.comm_record) if PLAN.comm else []
SCALE_RECORD = str(PLAN.scale_record) if PLAN.scale else []


# How long before its time limit a job is told to save and to go back into the queue, in seconds. Slurm may be a minute
# early with it.
NOTICE_S = 120


def launch_options(settings):
    """How `fourminutes launch` starts the processes of a run or of a measurement."""
    return f"--processes {settings.processes} --per-node {settings.per_node} --threads {settings.cores}"


def placement(settings, options=f"--signal=USR1@{NOTICE_S}"):
    """The resources of a job of one process a device, from which Slurm's executor makes its sbatch line.

    Without `gpu` or `gres`, beside which it would take the number of tasks for one a GPU. With `mpi`, be it empty, it
    leaves srun to `fourminutes launch`, so that a signal before the time limit reaches the processes alone. `options`
    are sbatch's, by default for that signal.
    """
    devices = f" --gpus-per-node={settings.per_node}" if settings.device == "gpu" else ""
    return {
        "nodes": settings.nodes,
        "cpus_per_task": settings.cores,
        # The executor refuses a name here with one process, and wants `tasks_per_node` from two on a node, else `tasks`.
        "mpi": "srun" if settings.processes > 1 else "",
        "tasks_per_node": settings.per_node if settings.per_node > 1 else None,
        "tasks": (settings.processes if settings.processes > settings.per_node == 1 else None),
        "slurm_extra": f"{options}{devices}",
    }


def there(records):
    """The records that the report waits for: with `--config draw_only=true` those that are here, else all of them."""
    if not DRAW_ONLY:
        return records
    return [path for path in ([records] if isinstance(records, str) else records) if os.path.exists(path)]


def sweep_run(wildcards):
    """The run that the trials of a sweep vary."""
    return PLAN.sweeps[wildcards.sweep].run


def series_run(wildcards):
    """What a measured series times on so many processes, in a run's form."""
    series = PLAN.scaling[wildcards.series]
    return series.at(int(wildcards.processes), PLAN.runs[series.run])


def pictures_of_series(made):
    """An input function: what was `made` of the data set, or nothing for a series whose batch is one of noise."""
    return lambda wildcards: made if PLAN.scaling[wildcards.series].input == "real" else []
