"""The `fourminutes scale` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourminutes.cli_comm import JsonOption, require_json
from fourminutes.cli_scale_plan import plan_
from fourminutes.cli_scale_profile import profile
from fourminutes.cli_scale_replay import replay
from fourminutes.plan import load_plan, series_settings

scale_app = typer.Typer(
    help="Steps at other sizes, one device's profile, what to buy: measured and predicted.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
scale_app.command("plan", epilog="Example: fourminutes scale plan --target-minutes 10 --price P40=0.4,H200=3")(plan_)
scale_app.command(
    epilog="Examples: fourminutes scale profile --model resnet50 --device cuda --precision half --out profile.json; "
    "fourminutes scale profile --model resnet50 --tflops 11.8 --memory-gb-s 346 --out p40.json"
)(profile)
scale_app.command(
    epilog="Example: fourminutes launch --processes 4 -- fourminutes scale replay cases.yaml --out replay.json"
)(replay)

PlanOption = Annotated[Path, typer.Option("--plan", help="plan file, such as config/plans/demo.yaml")]


@scale_app.command(
    epilog="Examples: fourminutes launch --processes 2 -- fourminutes scale measure --plan config/plans/demo.yaml "
    "--series alexnet-weak --processes 2 --out weak-2.json; srun --ntasks 32 fourminutes scale measure ..."
)
def measure(
    plan: PlanOption,
    series: Annotated[str, typer.Option(help="name of the series in the plan")],
    processes: Annotated[int, typer.Option(help="processes in all, as many as were started", min=1)],
    out: Annotated[Path, typer.Option(help="JSON record to write")],
) -> None:
    """Time a run's training step on the processes at hand; checkpoints and evaluations are left out."""
    from fourminutes.comm.watched import watched
    from fourminutes.record import write_record
    from fourminutes.report.scalings import in_a_line

    require_json(out)
    loaded = load_plan(plan)
    settings = series_settings(loaded, series, processes)
    with watched(timeout_s=settings.lost_after_s, again="start again"):
        from fourminutes.train import measure_scaling  # takes seconds

        record = measure_scaling(loaded, series, processes)
    if record is not None:
        write_record(out, record)
        print(in_a_line(record))


@scale_app.command(epilog="Example: fourminutes scale simulate --plan config/plans/demo.yaml")
def simulate(plan: PlanOption, json_: JsonOption = False) -> None:
    """Predict the plan's runs at other numbers of processes, from their records and the measured collectives."""
    from fourminutes.record import write_record
    from fourminutes.scale import simulate_plan

    loaded = load_plan(plan)
    record = simulate_plan(loaded)
    write_record(loaded.scale_record, record)
    if json_:
        print(record.model_dump_json(indent=1))
