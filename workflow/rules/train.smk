"""One job a run; its checkpoints lie outside of declared outputs, so that an interrupted one goes on."""


rule train_run:
    input:
        manifest=ancient(MANIFEST),
        shards=ancient(SHARDS),
        tuning=lambda wildcards: PLAN.runs[wildcards.run].reduce.tuning or [],
    output:
        f"{RESULTS}/runs/{{run}}.json",
    log:
        f"{LOGS}/train/{{run}}.log",
    wildcard_constraints:
        run="|".join(PLAN.runs) or "none",
    threads: lambda wildcards: PLAN.runs[wildcards.run].per_node * PLAN.runs[wildcards.run].threads
    resources:
        nodes=lambda wildcards: placement(PLAN.runs[wildcards.run])["nodes"],
        mpi=lambda wildcards: placement(PLAN.runs[wildcards.run])["mpi"],
        tasks=lambda wildcards: placement(PLAN.runs[wildcards.run])["tasks"],
        tasks_per_node=lambda wildcards: placement(PLAN.runs[wildcards.run])["tasks_per_node"],
        cpus_per_task=lambda wildcards: placement(PLAN.runs[wildcards.run])["cpus_per_task"],
        slurm_extra=lambda wildcards: placement(PLAN.runs[wildcards.run])["slurm_extra"],
    params:
        plan=PLAN_FILE,
        # Of the run's resolved settings: a changed recipe trains this run again, a changed comment none.
        recipe=lambda wildcards: PLAN.runs[wildcards.run].recipe_hash,
        launch=lambda wildcards: launch_options(PLAN.runs[wildcards.run]),
        # Computed from the input, so that another folder for checkpoints makes nothing anew.
        lease=lambda wildcards, input: str(PLAN.run_lease(wildcards.run)),
    shell:
        "fourminutes launch {params.launch} --lease {params.lease:q} --"
        " fourminutes train --plan {params.plan:q} --run {wildcards.run} 2> >(log_on {log:q})"
