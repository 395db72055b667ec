"""One job a run; its checkpoints lie outside of declared outputs, so that an interrupted one goes on."""


rule train_run:
    input:
        manifest=ancient(MANIFEST),
        shards=ancient(SHARDS),
    output:
        f"{RESULTS}/runs/{{run}}.json",
    log:
        f"{LOGS}/train/{{run}}.log",
    wildcard_constraints:
        run="|".join(PLAN.runs) or "none",
    params:
        plan=PLAN_FILE,
        # The run's resolved settings: a changed recipe trains this run again, a changed comment none.
        settings=lambda wildcards: PLAN.runs[wildcards.run].model_dump_json(exclude={"description"}),
        placement=lambda wildcards: launch_options(PLAN.runs[wildcards.run]),
    threads: lambda wildcards: cores_of(PLAN.runs[wildcards.run])
    resources:
        nodes=lambda wildcards: PLAN.runs[wildcards.run].nodes,
    shell:
        "fourminutes launch {params.placement} --"
        " fourminutes train --plan {params.plan} --run {wildcards.run} 2> >(tee {log} >&2)"
