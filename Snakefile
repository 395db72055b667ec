"""ImageNet's archives in, trained networks and the paper's tables and figures out.

`snakemake` runs the plan that params.yaml names, `snakemake --profile slurm` runs it on a cluster,
`snakemake --config plan=NAME` (a name in config/plans, or a path) runs another, and with `--config draw_only=true` it draws
the records that are here and makes none.
"""

from snakemake.utils import min_version

min_version("9.27")


configfile: "params.yaml"


include: "workflow/rules/container.smk"
include: "workflow/rules/common.smk"


# Used only with `--software-deployment-method apptainer`; otherwise the environment that calls snakemake is.
container: IMAGE


localrules:
    all,
    data,
    train,


# What `snakemake` makes: the report, and before it whatever the report needs.
rule all:
    default_target: True
    input:
        f"{RESULTS}/report.html",


# What `snakemake data` makes: the shards, even where the manifest alone is here already.
rule data:
    input:
        MANIFEST,
        SHARDS,


# What `snakemake train` makes: the record of every run, the ledger of every sweep, the measured collectives and series.
rule train:
    input:
        RUN_RECORDS,
        SWEEP_RECORDS,
        COMM_RECORD,
        SCALING_RECORDS,


# Rules for what the plan has, and none of them where only drawing is asked for.
MAKING = {
    "data": PLAN.data,
    "train": PLAN.data,
    "sweep": PLAN.sweeps,
    "comm": PLAN.comm,
    "scaling": PLAN.scaling,
    "scale": PLAN.scale,
}
for part, asked in MAKING.items():
    if asked and not DRAW_ONLY:

        include: f"workflow/rules/{part}.smk"


include: "workflow/rules/report.smk"
