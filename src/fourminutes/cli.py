"""The `fourminutes` command: parse, call one function, print."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fourminutes import __version__
from fourminutes.cli_comm import JsonOption, comm_app
from fourminutes.cli_doctor import doctor
from fourminutes.cli_scale import PlanOption, scale_app
from fourminutes.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, RunFailed, UserError
from fourminutes.plan import ResplitPlan, RunPlan, load_plan, run_of

app = typer.Typer(
    help="ImageNet from its archives to trained networks, and to the paper's tables and figures beside your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Index, shard and verify ImageNet.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(comm_app, name="comm")
app.add_typer(scale_app, name="scale")
app.command(epilog="Example: fourminutes doctor --plan config/plans/ilsvrc2012.yaml")(doctor)

SplitOption = Annotated[Literal["train", "val"], typer.Option(help="train or val")]
CheckOption = Annotated[
    Literal["decode", "header"], typer.Option(help="decode every image in full, or read its headers only")
]


def main() -> None:
    """Run the command; what a user can get wrong ends in one line on stderr, not in a traceback."""
    try:
        app()
    except UserError as error:
        _stop(str(error), EXIT_BAD_INPUT)
    except RunFailed as error:
        _stop(str(error), EXIT_FAILED)
    except Interrupted as error:
        _stop(str(error), EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno is None:  # no word of the operating system's: a fault of the program's own
            raise
        _stop(f"{error.filename or 'input or output'}: {error.strerror}", EXIT_BAD_INPUT)


def _stop(line: str, status: int) -> None:
    print(f"fourminutes: {line}", file=sys.stderr)
    sys.exit(status)


def _answer(answer: dict[str, Any], as_json: bool) -> None:
    """Print the answer of a command: as JSON, or as a line a key."""
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    for key, value in answer.items():
        print(f"{key.replace('_', ' ')}: {value}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# --- data -----------------------------------------------------------------------------------------------------------


@data_app.command(epilog="Example: fourminutes data synthesize data/mini --classes 10 --train-per-class 100")
def synthesize(
    out: Annotated[Path, typer.Argument(help="folder for the three archives")],
    classes: Annotated[int, typer.Option(help="number of classes", min=2, max=1000)] = 10,
    train_per_class: Annotated[int, typer.Option(help="training images of each class", min=8)] = 100,
    val_per_class: Annotated[int, typer.Option(help="validation images of each class", min=1)] = 20,
    side_px: Annotated[int, typer.Option(help="typical shorter side of an image, in pixels", min=32, max=1024)] = 72,
    seed: Annotated[int, typer.Option(help="seed of everything drawn", min=0)] = 0,
) -> None:
    """Draw a miniature ImageNet in the official three archives, odd files included."""
    from fourminutes.data.synthetic import synthesize as draw
    from fourminutes.plan import SyntheticSource

    draw(
        out,
        SyntheticSource(
            kind="synthetic",
            classes=classes,
            train_per_class=train_per_class,
            val_per_class=val_per_class,
            side_px=side_px,
            seed=seed,
        ),
    )


@data_app.command(epilog="Example: fourminutes data index /data/ILSVRC2012 --out data/imagenet/index.parquet")
def index(
    source: Annotated[Path, typer.Argument(help="folder with the three archives, or an extracted train/ and val/")],
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    workers: Annotated[int | None, typer.Option(help="threads that read headers; default four a core", min=1)] = None,
    resplit: Annotated[
        str | None,
        typer.Option(metavar="TRAIN:VAL", help="draw new splits of so many images; default the official ones"),
    ] = None,
    resplit_seed: Annotated[int, typer.Option(help="seed of that draw", min=0, max=2**32 - 1)] = 0,
    json_: JsonOption = False,
) -> None:
    """List every image of ImageNet, with label and place, without unpacking a file."""
    from fourminutes.data.index import build_index

    summary = build_index(source, out, workers=workers, resplit=_resplit_plan(resplit, resplit_seed))
    _answer(asdict(summary), json_)


def _resplit_plan(counts: str | None, seed: int) -> ResplitPlan | None:
    """What `--resplit` asks for."""
    if counts is None:
        return None
    match = re.fullmatch("([1-9][0-9]*):([1-9][0-9]*)", counts)
    if not match:
        raise UserError(f"--resplit {counts}: is not TRAIN:VAL; give both in images, such as 4000:1500")
    return ResplitPlan(train=int(match[1]), val=int(match[2]), seed=seed)


@data_app.command(epilog="Example: fourminutes data shard index.parquet --split train --shard 3 --of 64 --out data/x")
def shard(
    index: Annotated[Path, typer.Argument(help="index that `data index` wrote")],
    split: SplitOption,
    shard: Annotated[int, typer.Option(help="number of this shard, from 0", min=0)],
    of: Annotated[int, typer.Option(help="number of shards of the split", min=1, max=99_999)],
    out: Annotated[Path, typer.Option(help="folder of the data set")],
    seed: Annotated[int, typer.Option(help="seed of the global shuffle", min=0, max=2**32 - 1)] = 0,
    check: CheckOption = "decode",
    short_side_px: Annotated[
        int | None,
        typer.Option("--short-side", min=16, help="shrink to this shorter side, in pixels; default keeps the bytes"),
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of images encoded again", min=1, max=100)] = 90,
    max_broken_percent: Annotated[
        float, typer.Option(help="share of broken images at which the job fails, in percent", min=0, max=100)
    ] = 1.0,
    source: Annotated[Path | None, typer.Option(help="where the archives are now, if they moved")] = None,
) -> None:
    """Pack one shard of the global shuffle, with its DALI index and its record."""
    from fourminutes.data.shard import make_shard
    from fourminutes.plan import ShardRecipe

    recipe = ShardRecipe(
        seed=seed,
        check=check,
        short_side_px=short_side_px,
        quality=quality,
    )
    make_shard(
        index,
        split=split,
        shard=shard,
        of=of,
        out=out,
        recipe=recipe,
        max_broken_percent=max_broken_percent,
        source=source,
    )


@data_app.command(epilog="Example: fourminutes data manifest data/mini-3f2a --out manifest.json --expect ilsvrc2012")
def manifest(
    folder: Annotated[Path, typer.Argument(help="folder of the data set")],
    out: Annotated[Path, typer.Option(help="JSON file to write")],
    expect: Annotated[Literal["ilsvrc2012"] | None, typer.Option(help="known totals that the set must have")] = None,
    json_: JsonOption = False,
) -> None:
    """Sum up all shards of one set in one small file; refuse mixed or incomplete sets."""
    from fourminutes.data.manifest import make_manifest, summary

    _answer(summary(make_manifest(folder, out=out, expect=expect)), json_)


@data_app.command(epilog="Example: fourminutes data verify data/mini-3f2a --manifest manifest.json")
def verify(
    folder: Annotated[Path, typer.Argument(help="folder of the data set")],
    manifest: Annotated[Path | None, typer.Option(help="manifest to hold the set against; default the records")] = None,
    rebuild_index: Annotated[bool, typer.Option("--rebuild-index", help="write missing DALI indices again")] = False,
    json_: JsonOption = False,
) -> None:
    """Read every byte of every shard again and name what is wrong; exit 2 if anything is."""
    from fourminutes.data.verify import verify as problems_in
    from fourminutes.record import Manifest, read_record

    held_against = read_record(manifest, Manifest) if manifest else None
    problems = problems_in(folder, held_against, rebuild_index=rebuild_index)
    if json_:
        print(json.dumps({"problems": problems}, indent=1))
    for problem in problems:
        print(f"fourminutes: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(EXIT_BAD_INPUT)
    if not json_:
        print(f"{folder}: every shard, index and record is as it was made")


# --- training, measuring, predicting, drawing -----------------------------------------------------------------------


@app.command(
    epilog="Examples: fourminutes train --plan config/plans/demo.yaml --run resnet50-sgd-32; "
    "fourminutes launch --processes 2 -- fourminutes train ...; srun --ntasks 2 fourminutes train ..."
)
def train(plan: PlanOption, run: Annotated[str, typer.Option(help="name of the run in the plan")]) -> None:
    """Train one run of the plan; goes on from its newest checkpoint."""
    from fourminutes.comm.watched import watched

    loaded = load_plan(plan)
    lost_after_s = loaded.runs[run_of(loaded, run)].lost_after_s
    with watched(timeout_s=lost_after_s, again="start again: the run goes on from its last checkpoint"):
        from fourminutes.train import train as train_run  # takes seconds

        train_run(loaded, run)


@app.command(epilog="Example: fourminutes sweep --plan config/plans/proxy.yaml --sweep lars-800")
def sweep(plan: PlanOption, sweep: Annotated[str, typer.Option(help="name of the sweep in the plan")]) -> None:
    """Tune one sweep of the plan and measure its best value; goes on after the last finished trial."""
    from fourminutes.comm.watched import watched

    loaded = load_plan(plan)
    settings = loaded.sweeps[sweep].run if sweep in loaded.sweeps else RunPlan()
    with watched(timeout_s=settings.lost_after_s, again="start again: finished trials are kept"):
        from fourminutes.train import run_sweep  # takes seconds

        run_sweep(loaded, sweep)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: fourminutes launch --processes 2 -- fourminutes train --plan config/plans/demo.yaml --run NAME",
)
def launch(
    command: Annotated[list[str], typer.Argument(help="command that each process runs")],
    processes: Annotated[int, typer.Option(help="processes in all, one a device", min=1)],
    per_node: Annotated[int | None, typer.Option(help="processes on each node; default all of them", min=1)] = None,
    threads: Annotated[int, typer.Option(help="CPU cores of each process", min=1)] = 1,
    lease: Annotated[
        Path | None, typer.Option(help="file by which only one start at a time is at it; another one is waited for")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Apptainer image that each process runs in", envvar="FOURMINUTES_CONTAINER")
    ] = None,
    container_args: Annotated[
        str, typer.Option(help="more options of `apptainer exec`", envvar="FOURMINUTES_CONTAINER_ARGS")
    ] = "",
) -> None:
    """Start a command as several processes: in a Slurm job on its nodes, elsewhere on this machine.

    With --lease a Slurm job that was interrupted with everything saved, or lost a process, goes back into the queue by
    itself.
    """
    from fourminutes.comm.container import in_container
    from fourminutes.comm.start import start

    command = in_container(command, container, container_args) if container else command
    start(command, processes=processes, per_node=per_node or processes, threads=threads, lease=lease)


@app.command(epilog="Example: snakemake --forcerun $(fourminutes outdated --plan config/plans/demo.yaml)")
def outdated(plan: PlanOption) -> None:
    """Name the plan's records that were made with other settings than it has now, one a line."""
    from fourminutes.record import outdated_records

    for path in outdated_records(load_plan(plan)):
        print(path)


@app.command(epilog="Example: fourminutes report --plan config/plans/paper.yaml")
def report(plan: PlanOption) -> None:
    """Draw the plan's tables, figures and page from records and published numbers; needs neither torch nor DALI."""
    from fourminutes.report import make_report

    print(make_report(load_plan(plan)))
