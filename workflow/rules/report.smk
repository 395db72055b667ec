"""Tables, figures and the page, from records and published numbers alone."""

from fourminutes.report.names import (
    FIGURE_FORMATS,
    TABLE_FORMATS,
    figure_names,
    table_names,
)

PATTERNS = [
    *PLAN.report.records,
    *PLAN.report.comm_records,
    *PLAN.report.scaling_records,
    *PLAN.report.replays,
    *PLAN.report.profiles,
    *filter(None, [PLAN.report.scale_record]),
]
DRAWN_FROM = sorted({path for pattern in PATTERNS for path in glob.glob(pattern)})


rule report:
    input:
        there(MANIFEST),
        there(RUN_RECORDS),
        there(SWEEP_RECORDS),
        there(COMM_RECORD),
        there(SCALING_RECORDS),
        there(SCALE_RECORD),
        DRAWN_FROM,
    output:
        page=report(f"{RESULTS}/report.html", caption="../report/page.rst", category="Page"),
        figures=[
            report(
                f"{RESULTS}/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category="Figures",
            )
            for name in figure_names(PLAN)
        ],
        prints=expand(
            f"{RESULTS}/figures/{{name}}.{{ending}}",
            name=figure_names(PLAN),
            ending=[ending for ending in FIGURE_FORMATS if ending != "svg"],
        ),
        tables=expand(
            f"{RESULTS}/tables/{{name}}.{{ending}}",
            name=table_names(PLAN),
            ending=TABLE_FORMATS,
        ),
        metrics=f"{RESULTS}/metrics.json",
        epochs=f"{RESULTS}/epochs.csv",
    log:
        f"{LOGS}/report.log",
    localrule: True
    params:
        plan=PLAN_FILE,
        settings=PLAN.report.model_dump_json(),
        descriptions=[
            PLAN.description,
            *(run.description for run in PLAN.runs.values()),
            *(sweep.description for sweep in PLAN.sweeps.values()),
        ],
        # A changed margin or comparison judges again, and makes no trial.
        claims=[claim.model_dump_json() for claim in PLAN.claims.values()],
    shell:
        "fourminutes report --plan {params.plan:q} > /dev/null 2> >(log_to {log:q})"
