"""Predicting other sizes from what was measured."""


rule simulate:
    input:
        RUN_RECORDS,
        COMM_RECORD,
    output:
        SCALE_RECORD,
    log:
        f"{LOGS}/simulate.log",
    localrule: True
    params:
        plan=PLAN_FILE,
        settings=PLAN.scale.model_dump_json(),
    shell:
        "fourminutes scale simulate --plan {params.plan:q} 2> >(log_to {log:q})"
