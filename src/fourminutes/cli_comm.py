"""The `fourminutes comm` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourminutes.comm.launch import TIMEOUT_S
from fourminutes.comm.options import bench_settings, group_ranks_of
from fourminutes.errors import UserError
from fourminutes.files import clear_write_errors
from fourminutes.plan import Wire, load_plan

comm_app = typer.Typer(
    help="Measure the collectives, and choose among them.", no_args_is_help=True, rich_markup_mode=None
)
JsonOption = Annotated[bool, typer.Option("--json", help="print the answer as JSON on stdout")]


@comm_app.command(
    epilog="Examples: fourminutes launch --processes 4 -- fourminutes comm bench --out comm.json; "
    "srun --ntasks 32 fourminutes comm bench --out comm.json --min-size 256 --max-size 256M --groups 2,8 --wires fp16"
)
def bench(
    out: Annotated[Path, typer.Option(help="JSON record to write; beside it every call as .parquet, and the figure")],
    plan: Annotated[
        Path | None, typer.Option(help="plan with a comm block; default all processes there are, 256 B to 256 MiB")
    ] = None,
    min_size: Annotated[
        str | None, typer.Option("--min-size", "-b", help="smallest message on the wire: bytes, or with K, M, G")
    ] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", "-e", help="largest message, likewise")] = None,
    step_factor: Annotated[int, typer.Option("--step-factor", "-f", help="factor between sizes", min=2)] = 4,
    groups: Annotated[str | None, typer.Option(help="processes a group, such as 2,4,8; default by host")] = None,
    wires: Annotated[str | None, typer.Option(help="number formats, of fp32, fp16, bf16, such as fp32,fp16")] = None,
    algorithms: Annotated[str | None, typer.Option(help="of ring, hierarchical, torus, such as ring,torus")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", "-n", help="timed calls of each", min=3)] = None,
) -> None:
    """Measure every all-reduce algorithm at every size on the processes at hand; sizes as nccl-tests has them."""
    from fourminutes.comm.tables import bench_table
    from fourminutes.comm.watched import watched
    from fourminutes.record import write_record

    require_json(out)
    loaded = load_plan(plan) if plan else None
    if loaded and loaded.comm is None:
        raise UserError(f"{plan}: has no comm block; add one, or leave --plan out")
    settings = bench_settings(
        loaded.comm if loaded else None,
        min_size=min_size,
        max_size=max_size,
        step_factor=step_factor,
        groups=groups,
        wires=wires,
        algorithms=algorithms,
        repeats=repeats,
    )
    with watched(timeout_s=settings.lost_after_s, again="start again"):
        from fourminutes.comm.bench import run_bench, write_calls  # takes seconds

        measured = run_bench(settings, plan=loaded.name if loaded else "")
    if measured is not None:
        from fourminutes.report.drawing import draw, write_figure
        from fourminutes.report.figures_runs import collectives

        write_record(out, measured.record)
        write_calls(out.with_suffix(".parquet"), measured)
        write_figure(out.parent, out.stem, draw(collectives, [measured.record]))
        print(bench_table(measured.record))


@comm_app.command(
    epilog="Examples: fourminutes launch --processes 4 -- fourminutes comm tune --out tuning.json; "
    "srun --ntasks 32 fourminutes comm tune --out tuning.json --plan config/plans/demo.yaml --run resnet50-lars-64"
)
def tune(
    out: Annotated[Path, typer.Option(help="JSON file to write, which a plan names as reduce.tuning")],
    plan: Annotated[Path | None, typer.Option(help="plan of the run whose bucket size is to be chosen too")] = None,
    run: Annotated[str | None, typer.Option(help="name of that run; its wire is tuned for")] = None,
    wire: Annotated[Wire, typer.Option(help="number format, where no run is given")] = "fp32",
    groups: Annotated[str | None, typer.Option(help="processes a group, such as 2,4,8; default hosts, 2, 4")] = None,
    seconds: Annotated[float, typer.Option(help="time to measure, in seconds", min=1)] = 14,
    json_: JsonOption = False,
) -> None:
    """Choose all-reduce algorithms by message size, and a model's bucket size, from times on the processes at hand."""
    from fourminutes.comm.tables import tuning_table
    from fourminutes.comm.watched import watched
    from fourminutes.record import write_record

    require_json(out)
    if (plan is None) != (run is None):
        raise UserError("--plan, --run: go together; give both, or none to tune for any model")
    sizes = group_ranks_of(groups)
    with watched(timeout_s=TIMEOUT_S, again="start again"):
        from fourminutes.comm.tune import tune_here
        from fourminutes.train import tune_run

        if plan is not None and run is not None:
            tuning = tune_run(load_plan(plan), run, groups=sizes, budget_s=seconds)
        else:
            tuning = tune_here(wire, groups=sizes, budget_s=seconds)
    if tuning is not None:
        write_record(out, tuning)
        print(tuning.model_dump_json(indent=1) if json_ else tuning_table(tuning))


def require_json(out: Path) -> None:
    """Make sure that the record has a name of its own, before anything is measured for it."""
    if out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json")
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
