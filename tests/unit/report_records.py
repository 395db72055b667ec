"""Hand-made records of everything that a report draws from, and the points that a figure of them shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from profile_records import profile_record
from replay_records import replay_record
from scaling_records import record_series
from support.epochs import epoch_record, step_times
from sweep_records import PROVENANCE, record_arms

from fourminutes.facts import Certainty
from fourminutes.plan import (
    BatchPlan,
    CommBenchPlan,
    ModelPlan,
    OptimizerPlan,
    Plan,
    ReducePlan,
    RunPlan,
    ScalePlan,
    ShardRecipe,
)
from fourminutes.record import (
    CollectiveTiming,
    CommRecord,
    Manifest,
    Placement,
    Prediction,
    Reduction,
    RunRecord,
    ScaleRecord,
    Session,
    ShardEntry,
    SplitSummary,
    TracedSpan,
    TracedStep,
    write_record,
)
from fourminutes.report import drawing
from fourminutes.report.evidence import gather
from fourminutes.report.figures import BUILDERS

ROOT = Path(__file__).resolve().parents[2]


def settings(model="resnet50", kind="lars", batch=512, processes=1, epochs=6, per_device=64) -> RunPlan:
    return RunPlan(
        epochs=epochs,
        processes=processes,
        model=ModelPlan(name=model, width=0.25, image_px=64),
        optimizer=OptimizerPlan(kind=kind),
        batch=BatchPlan(global_batch=batch, per_device=per_device),
    )


def run_record(name, plan="made", run_settings=None, final_top1=80.0, rate=100.0) -> RunRecord:
    chosen = run_settings or settings()
    images = 1600
    seconds = images / rate
    epochs = tuple(
        epoch_record(
            number,
            steps_per_epoch=3,
            train_images=images,
            top1_percent=10 + (final_top1 - 10) * (1 - 0.55**number) / (1 - 0.55**chosen.epochs),
            top5_percent=60.0 + 5 * number,
            val_images=400,
            images_per_s=rate,
            times=step_times(
                input_wait_s=0.05 * seconds,
                forward_s=0.25 * seconds,
                backward_s=0.5 * seconds,
                exposed_reduce_s=0.1 * seconds if chosen.processes > 1 else 0.0,
                optimizer_s=0.06 * seconds,
                evaluation_s=1.5,
                checkpoint_s=0.5,
                other_s=0.14 * seconds - (0.1 * seconds if chosen.processes > 1 else 0.0),
            ),
        )
        for number in range(1, chosen.epochs + 1)
    )
    wall = chosen.epochs * (seconds + 2.0)
    return RunRecord(
        plan=plan,
        run=name,
        settings=chosen,
        settings_hash=chosen.recipe_hash,
        dataset="made",
        dataset_hash="ab" * 32,
        class_count=10,
        parameters=1_600_000,
        gradient_tensors=161,
        placement=Placement(
            launcher="alone",
            hosts=("node1",) * chosen.processes,
            device="cpu",
            backend="gloo" if chosen.processes > 1 else None,
        ),
        provenance=PROVENANCE,
        epochs=epochs,
        sessions=(
            Session(started="2026-11-20T09:00:00+00:00", from_step=0, to_step=18, wall_s=wall, ended="finished"),
        ),
        parameter_checksum="cd" * 32,
        reduction=Reduction(settings=chosen.reduce, buckets=(600_000, 1_000_000), traced=traced_step())
        if chosen.processes > 1
        else None,
    )


def traced_step() -> TracedStep:
    """Two buckets; the second is ready when the first is half reduced."""
    spans = [(0, "queued", 0, 1), (0, "all_reduce, world", 1, 5), (1, "queued", 3, 5), (1, "all_reduce, world", 5, 9)]
    return TracedStep(
        step=20,
        spans=tuple(
            TracedSpan(bucket=bucket, name=name, start_s=start / 1e3, end_s=end / 1e3)
            for bucket, name, start, end in spans
        ),
        busy_s=(8e-3, 8e-3),
        exposed_s=(6e-3, 5e-3),
    )


def comm_record(hosts=("node1",) * 4) -> CommRecord:
    timings = tuple(
        CollectiveTiming(
            algorithm=algorithm,
            group_ranks=4 if algorithm == "ring" else 2,
            message_bytes=size,
            repeats=15,
            median_s=base + size * slope,
            lower_quartile_s=0.9 * (base + size * slope),
            upper_quartile_s=1.2 * (base + size * slope),
            bus_gbyte_s=1.5 * size / (base + size * slope) / 1e9,
        )
        for algorithm, base, slope in (("ring", 4e-4, 1e-9), ("hierarchical", 2e-4, 1.6e-9))
        for size in (1024, 16384, 131072, 1048576, 8388608)
    )
    return CommRecord(
        plan="made",
        settings=CommBenchPlan(),
        placement=Placement(launcher="alone", hosts=hosts, device="cpu", backend="gloo"),
        provenance=PROVENANCE,
        timings=timings,
        fits=(),
    )


def scale_record(runs=("resnet50-lars-512",)) -> ScaleRecord:
    return ScaleRecord(
        plan="made",
        settings=ScalePlan(),
        provenance=PROVENANCE,
        assumptions=("The link between nodes is the measured one.",),
        predictions=tuple(
            Prediction(
                run=run,
                algorithm=algorithm,
                processes=processes,
                step_s=1 + 0.01 * processes**0.5 * factor,
                exposed_reduce_s=0.01 * processes**0.5 * factor,
                images_per_s=64 * processes / (1 + 0.01 * processes**0.5 * factor),
                efficiency_percent=100 / (1 + 0.01 * (processes**0.5 - 1) * factor),
            )
            for run in runs
            for algorithm, factor in (("ring", 2.0), ("hierarchical", 1.0))
            for processes in (1, 2, 8, 64, 512, 2048)
        ),
    )


def manifest() -> Manifest:
    def split(name, shards, each):
        return SplitSummary(
            samples=shards * each,
            tar_bytes=shards * each * 4000,
            images_per_label=(shards * each // 10,) * 10,
            shards=tuple(
                ShardEntry(
                    name=f"{name}-{i:05d}-of-{shards:05d}",
                    samples=each,
                    tar_bytes=each * 4000,
                    sha256="0" * 64,
                    index_sha256="1" * 64,
                )
                for i in range(shards)
            ),
            converted=(),
            refused=(),
        )

    return Manifest(
        dataset_hash="ab" * 32,
        recipe=ShardRecipe(),
        expected=None,
        classes=tuple(f"n{i:08d}" for i in range(10)),
        splits={"train": split("train", 8, 200), "val": split("val", 2, 200)},
    )


def plan_of(runs: dict[str, RunPlan], name: str = "made", **blocks: Any) -> Plan:
    raw = {
        "name": name,
        "data": {"dataset": "made", "source": {"kind": "synthetic"}},
        "runs": {run: chosen.model_dump(mode="json") for run, chosen in runs.items()},
        "comm": {},
        "scale": {},
        "report": {
            "replays": [f"results/{name}/replays/*.json"],
            "profiles": [f"results/{name}/profiles/*.json"],
        },
        **blocks,
    }
    return Plan.model_validate_json(json.dumps(raw))


RUNS = {
    "alexnet-sgd-64": settings("alexnet_bn", "sgd", 64),
    "resnet50-lars-512": settings(),
    "resnet50-lars-1024-x2": settings(batch=1024, processes=2).model_copy(
        update={"reduce": ReducePlan(bucket_mib=4, trace_step=20)}
    ),
}

SERIES = {"weak": {"run": "resnet50-lars-512", "world_sizes": [1, 2, 4]}}


def record_all(plan: Plan) -> None:
    for name, chosen in plan.runs.items():
        write_record(plan.run_record(name), run_record(name, plan.name, chosen, rate=100.0 * chosen.processes**0.5))
    write_record(plan.comm_record, comm_record())
    write_record(plan.scale_record, scale_record())
    write_record(plan.manifest, manifest())
    write_record(plan.results / "replays" / "four.json", replay_record())
    write_record(plan.results / "profiles" / "one.json", profile_record())
    record_series(plan)
    if plan.sweeps:
        record_arms(plan)


def points(name: str, plan: Plan, axes: int = 0) -> dict[tuple[float, float], tuple[str, str]]:
    """Every single marker of a figure's axes, with its filling's colour and style."""
    with drawing.mpl.rc_context(fname=str(drawing.STYLE)):
        lines = BUILDERS[name](gather(plan)).axes[axes].get_lines()
    return {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])): (line.get_markerfacecolor(), line.get_fillstyle())
        for line in lines
        if len(line.get_xdata()) == 1 and line.get_marker() not in ("", "None")
    }


def drawn_as(look: tuple[str, str]) -> Certainty:
    """The certainty that a marker's filling tells."""
    if look[0] == drawing.PAPER:
        return Certainty.UNCONFIRMED
    return Certainty.DERIVED if look[1] == "left" else Certainty.CONFIRMED
