"""The `fourminutes scale plan` and `fourminutes scale what-if` commands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from fourminutes.errors import UserError
from fourminutes.plan import ModelName, load_plan, run_of

_PLAN = Path("config/hardware.yaml")


def plan(
    model: Annotated[ModelName, typer.Option(help="network to train on ImageNet")],
    target_minutes: Annotated[float, typer.Option(help="how long training may take, in minutes")],
    catalogue: Annotated[Path, typer.Option(help="YAML file of devices, links, networks and prices")] = _PLAN,
    device: Annotated[list[str] | None, typer.Option(help="kind of device to look at; may be repeated")] = None,
    network: Annotated[list[str] | None, typer.Option(help="kind of network between nodes; likewise")] = None,
    max_devices: Annotated[int, typer.Option(help="most devices of a cluster", min=1)] = 4096,
    precision: Annotated[Literal["fp32", "half"], typer.Option(help="half stands for amp and bf16 too")] = "half",
    batch: Annotated[int | None, typer.Option(help="images a step; default what is the fastest", min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over ImageNet; default the recipe's", min=0.1)] = None,
    price: Annotated[str, typer.Option(help="price of one device an hour, such as P40=0.4,H200=3.5")] = "",
    sort: Annotated[Literal["devices", "minutes", "money", "energy"], typer.Option(help="smallest first")] = "devices",
    json_: Annotated[bool, typer.Option("--json", help="print the answer as JSON on stdout")] = False,
) -> None:
    """Say which clusters train a network in a given time, for what money and energy, and what more of them buys."""
    from fourminutes.scale.catalogue import priced, read_catalogue
    from fourminutes.scale.clusters import Workload
    from fourminutes.scale.plan_table import plan_text
    from fourminutes.scale.planner import Goal, plan_purchase

    known = priced(read_catalogue(catalogue), _prices(price))
    goal = Goal(
        Workload(model, precision),
        target_minutes,
        devices=tuple(device or ()),
        networks=tuple(network or ()),
        most_devices=max_devices,
        batch=batch,
        epochs=epochs,
    )
    lines = plan_purchase(goal, known, sort)
    print(json.dumps([asdict(line) for line in lines], indent=1) if json_ else plan_text(goal, lines, known))


def _prices(text: str) -> dict[str, float]:
    """What `--price` gives."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise UserError(f"--price {part}: is not DEVICE=NUMBER, such as H200=3.5") from None
    return found


def what_if(
    plan: Annotated[Path, typer.Option(help="plan whose records are here")],
    run: Annotated[str, typer.Option(help="recorded run of it to start from")],
    processes: Annotated[
        int | None, typer.Option(help="processes to predict; default twice those of the run", min=2)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the answer as JSON on stdout")] = False,
) -> None:
    """Say what a faster network, half precision on the wire, a larger batch and more would make of a measured run."""
    from fourminutes.record import CommRecord, RunRecord, read_record
    from fourminutes.scale.whatif import changes, what_if_text

    loaded = load_plan(plan)
    if loaded.scale is None:
        raise UserError(f"{plan}: has no scale block; add one to predict other sizes")
    record = read_record(loaded.run_record(run_of(loaded, run)), RunRecord)
    comm = read_record(loaded.comm_record, CommRecord)
    count = processes or 2 * record.settings.processes
    found = changes(record, comm, loaded.scale, count)
    print(json.dumps([asdict(one) for one in found], indent=1) if json_ else what_if_text(record, count, found))
