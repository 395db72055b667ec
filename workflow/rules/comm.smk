"""Measuring the collectives on the machines at hand."""


rule comm_bench:
    output:
        COMM_RECORD,
    log:
        f"{LOGS}/comm.log",
    # All cores, or whole nodes: training beside it would be measured along.
    threads: workflow.cores
    resources:
        **placement(PLAN.comm, "--exclusive"),
    params:
        plan=PLAN_FILE,
        settings=PLAN.comm.model_dump_json(exclude={"device", "lost_after_s"}),
        launch=launch_options(PLAN.comm),
    shell:
        "fourminutes launch {params.launch} --"
        " fourminutes comm bench --plan {params.plan:q} --out {output:q} 2> >(log_to {log:q})"
