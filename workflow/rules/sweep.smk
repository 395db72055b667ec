"""One job a sweep; its ledger grows outside of declared outputs, so that an interrupted one goes on."""


rule sweep:
    input:
        manifest=ancient(MANIFEST),
        shards=ancient(SHARDS),
        # The sweep whose chosen value this one takes over.
        source=lambda wildcards: [
            str(PLAN.sweep_record(name)) for name in [PLAN.sweeps[wildcards.sweep].scaled_from] if name
        ],
    output:
        # Left in its place while the job runs, which takes over the trials in it.
        update(f"{RESULTS}/sweeps/{{sweep}}.json"),
    log:
        f"{LOGS}/sweep/{{sweep}}.log",
    wildcard_constraints:
        sweep="|".join(PLAN.sweeps) or "none",
    container:
        around_each_process
    threads: lambda wildcards: sweep_run(wildcards).per_node * sweep_run(wildcards).threads
    resources:
        nodes=lambda wildcards: placement(sweep_run(wildcards))["nodes"],
        mpi=lambda wildcards: placement(sweep_run(wildcards))["mpi"],
        tasks=lambda wildcards: placement(sweep_run(wildcards))["tasks"],
        tasks_per_node=lambda wildcards: placement(sweep_run(wildcards))["tasks_per_node"],
        cpus_per_task=lambda wildcards: placement(sweep_run(wildcards))["cpus_per_task"],
        slurm_extra=lambda wildcards: placement(sweep_run(wildcards))["slurm_extra"],
    params:
        plan=PLAN_FILE,
        # A changed recipe, grid or budget makes the trials that are missing; those made alike are kept.
        recipe=lambda wildcards: sweep_run(wildcards).recipe_hash,
        grid=lambda wildcards: PLAN.sweeps[wildcards.sweep].model_dump_json(exclude={"description", "run"}),
        tuning=PLAN.tuning.model_dump_json(),
        launch=lambda wildcards: launch_options(sweep_run(wildcards)),
        # Computed from the input, so that another folder for checkpoints makes nothing anew.
        lease=lambda wildcards, input: str(PLAN.sweep_lease(wildcards.sweep)),
    shell:
        "fourminutes launch {params.launch} --lease {params.lease:q} --"
        " fourminutes sweep --plan {params.plan:q} --sweep {wildcards.sweep} 2> >(log_on {log:q})"
