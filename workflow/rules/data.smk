"""From ImageNet's archives to shards and their manifest."""

from fourminutes.plan import SyntheticSource

SOURCE = str(PLAN.data.source_folder)
ARCHIVES = (
    multiext(f"{SOURCE}/ILSVRC2012_", "img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
    if isinstance(PLAN.data.source, SyntheticSource)
    else []
)


if ARCHIVES:

    rule synthesize:
        output:
            ARCHIVES,
        log:
            f"{LOGS}/synthesize.log",
        threads: 4
        params:
            folder=lambda wildcards, output: os.path.dirname(output[0]),
            options=" ".join(
                f"--{key.replace('_', '-')} {value}"
                for key, value in PLAN.data.source.model_dump(exclude={"kind"}).items()
            ),
        shell:
            "fourminutes data synthesize {params.folder:q} {params.options} 2> >(log_to {log:q})"


# A given source is no input: the index names what is missing from it better than a missing-input error would, and the
# workflow can be planned on a machine that does not hold it.
rule index:
    input:
        ancient(ARCHIVES),
    output:
        f"{DATA_FOLDER}/index.parquet",
    log:
        f"{LOGS}/index.log",
    threads: 2
    params:
        source=lambda wildcards: SOURCE,
        workers=(f"--workers {PLAN.data.index_workers}" if PLAN.data.index_workers else ""),
        resplit=(
            "--resplit {0.train}:{0.val} --resplit-seed {0.seed}".format(PLAN.data.resplit)
            if PLAN.data.resplit
            else ""
        ),
    shell:
        "fourminutes data index {params.source:q} --out {output:q} {params.workers} {params.resplit} 2> >(log_to {log:q})"


rule shard:
    input:
        index=ancient(rules.index.output),
    output:
        multiext(f"{DATA_FOLDER}/{{split}}-{{shard}}-of-{{of}}", ".tar", ".idx", ".json"),
    log:
        f"{LOGS}/shard/{{split}}-{{shard}}-of-{{of}}.log",
    wildcard_constraints:
        split="|".join(SPLITS),
        shard=r"\d{5}",
        of=r"\d{5}",
    group:
        "shard"
    resources:
        mem_mb=1024,
        # Of a job of many: a profile says how many it makes at a time.
        shards_at_once=1,
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        options=" ".join(
            f"--{key.removesuffix('_px').replace('_', '-')} {value}"
            for key, value in PLAN.data.recipe.model_dump().items()
            if value is not None
        ),
        # Computed from the input, so that shards that a lower tolerance let pass are not made anew.
        max_broken=lambda wildcards, input: f"--max-broken-percent {PLAN.data.max_broken_percent}",
    shell:
        "fourminutes data shard {input.index:q} --split {wildcards.split} --shard {wildcards.shard} --of {wildcards.of}"
        " --out {params.folder:q} {params.options} {params.max_broken} 2> >(log_to {log:q})"


rule manifest:
    input:
        rules.index.output,
        ancient(SHARDS),
    output:
        MANIFEST,
    log:
        f"{LOGS}/manifest.log",
    params:
        folder=lambda wildcards, input: os.path.dirname(input[0]),
        expect=f"--expect {PLAN.data.expect}" if PLAN.data.expect else "",
    shell:
        "fourminutes data manifest {params.folder:q} --out {output:q} {params.expect} 2> >(log_to {log:q})"
