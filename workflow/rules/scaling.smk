"""Timing a run's step on one number of processes after another, one job each."""


rule measure_scaling:
    input:
        manifest=ancient(pictures_of_series(MANIFEST)),
        shards=ancient(pictures_of_series(SHARDS)),
        tuning=lambda wildcards: series_run(wildcards).reduce.tuning or [],
    output:
        f"{RESULTS}/scaling/{{series}}-{{processes}}.json",
    log:
        f"{LOGS}/scaling/{{series}}-{{processes}}.log",
    wildcard_constraints:
        series="|".join(PLAN.scaling) or "none",
        processes=r"[1-9]\d*",
    container:
        around_each_process
    # All cores, or whole nodes: what runs beside it would be measured along.
    threads: workflow.cores
    resources:
        nodes=lambda wildcards: placement(series_run(wildcards), "--exclusive")["nodes"],
        mpi=lambda wildcards: placement(series_run(wildcards), "--exclusive")["mpi"],
        tasks=lambda wildcards: placement(series_run(wildcards), "--exclusive")["tasks"],
        tasks_per_node=lambda wildcards: placement(series_run(wildcards), "--exclusive")["tasks_per_node"],
        cpus_per_task=lambda wildcards: placement(series_run(wildcards), "--exclusive")["cpus_per_task"],
        slurm_extra=lambda wildcards: placement(series_run(wildcards), "--exclusive")["slurm_extra"],
    params:
        plan=PLAN_FILE,
        # Another list of sizes times those that are new, another word none.
        how=lambda wildcards: PLAN.scaling[wildcards.series].key,
        speed=lambda wildcards: speed_hash(series_run(wildcards)),
        launch=lambda wildcards: launch_options(series_run(wildcards)),
    shell:
        "fourminutes launch {params.launch} --"
        " fourminutes scale measure --plan {params.plan:q} --series {wildcards.series}"
        " --processes {wildcards.processes} --out {output:q} 2> >(log_to {log:q})"
