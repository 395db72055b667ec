"""The `fourminutes scale plan` command."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fourminutes.cli_comm import JsonOption
from fourminutes.errors import UserError

if TYPE_CHECKING:
    from fourminutes.record.base import Record
    from fourminutes.scale.catalogue import Catalogue
    from fourminutes.scale.limits import Budget, Trained

_MODELS: dict[str, Trained] = {"resnet50": "resnet50", "alexnet_bn": "alexnet_bn", "alexnet": "alexnet_bn"}


def plan_(
    model: Annotated[str, typer.Option(help="resnet50 or alexnet_bn")] = "resnet50",
    target_minutes: Annotated[float, typer.Option(help="time that the training may take, in minutes")] = 10,
    catalogue: Annotated[Path, typer.Option(help="devices, nodes, networks and prices")] = Path("config/hardware.yaml"),
    device: Annotated[list[str] | None, typer.Option(help="only this device; may be given again")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="only this network; may be given again; default the usual ones of the catalogue"),
    ] = None,
    max_devices: Annotated[int, typer.Option(help="the most devices to look at", min=1, max=65_536)] = 4096,
    precision: Annotated[Literal["half", "fp32"], typer.Option(help="half or fp32")] = "half",
    epochs: Annotated[float | None, typer.Option(help="epochs whatever the batch; default those of recipes")] = None,
    batch: Annotated[
        int | None, typer.Option(help="images a step at most; default as recipes have them", min=1)
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="of a device and hour in your currency, such as P40=0.4,H200=3")
    ] = None,
    sort: Annotated[
        Literal["time", "money", "energy", "devices"], typer.Option(help="what the clusters are ordered by")
    ] = "time",
    rows: Annotated[int, typer.Option(help="clusters to show", min=1)] = 20,
    what_if: Annotated[
        Path | None, typer.Option(help="plan whose own runs and collectives are asked instead: what would change")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON record to write")] = None,
    json_: JsonOption = False,
) -> None:
    """Find the clusters that train a network in the time given, with their time, money and energy."""
    from fourminutes.scale.catalogue import read_catalogue

    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: is no JSON file; give a name that ends in .json")
    read = read_catalogue(catalogue)
    if what_if is not None:
        _answer_what_if(what_if, read, out, json_)
        return
    from fourminutes.scale.plan_tables import answer_text
    from fourminutes.scale.planner import Question, plan_clusters

    trained = _model(model)
    question = Question(
        model=trained,
        precision=precision,
        target_minutes=_positive("--target-minutes", target_minutes),
        devices=_chosen("device", device, read.devices),
        networks=_chosen("network", network or _usual(read), read.networks),
        max_devices=max_devices,
        budgets=_budgets(trained, batch, epochs),
        prices=_prices(price, read),
        largest_is="asked for" if batch else "with a recipe",
    )
    answer = plan_clusters(read, question, str(catalogue))
    _tell(answer, answer_text(answer, sort, rows), out, json_)


def _answer_what_if(path: Path, catalogue: Catalogue, out: Path | None, as_json: bool) -> None:
    from fourminutes.plan import load_plan
    from fourminutes.scale.plan_tables import what_if_text
    from fourminutes.scale.whatif import what_if

    found = what_if(load_plan(path), catalogue)
    _tell(found, what_if_text(found), out, as_json)


def _tell(record: Record, text: str, out: Path | None, as_json: bool) -> None:
    from fourminutes.record import write_record

    if out is not None:
        write_record(out, record)
    print(record.model_dump_json(indent=1) if as_json else text)


def _model(name: str) -> Trained:
    from fourminutes.scale.catalogue import known

    return _MODELS[known("model", name, _MODELS)]


def _chosen(kind: str, names: list[str] | None, there: Collection[str]) -> tuple[str, ...]:
    from fourminutes.scale.catalogue import known

    return tuple(dict.fromkeys(known(kind, name, there) for name in names)) if names else tuple(there)


def _usual(catalogue: Catalogue) -> list[str]:
    return [name for name, one in catalogue.networks.items() if one.usual]


def _positive(option: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{option} {value:g}: must be greater than 0")
    return value


def _budgets(model: Trained, batch: int | None, epochs: float | None) -> tuple[Budget, ...]:
    """The recipes' batches and epochs, with what was given in their place.

    Raises:
        UserError: the batch has no recipe and no number of epochs is given.
    """
    from fourminutes.plan.recipes import read_recipes
    from fourminutes.scale.limits import Budget, budgets

    given = None if epochs is None else _positive("--epochs", epochs)
    if batch is not None and given is not None:
        return (Budget("as given", batch, given, "given"),)
    found = budgets(read_recipes(), model)
    if given is not None:
        return (Budget("epochs as given", found[-1].batch, given, "given"),)
    if batch is None:
        return found
    if batch > found[-1].batch:
        largest = f"the largest with a recipe is {found[-1].batch:,}"
        raise UserError(f"--batch {batch}: {largest}; give --epochs with it, or a smaller one")
    enough = next(one for one in found if one.batch >= batch)
    return (Budget(enough.recipe, batch, enough.epochs, enough.certainty),)


def _prices(given: str | None, catalogue: Catalogue) -> dict[str, float]:
    """Prices of the catalogue, and over them those given.

    Raises:
        UserError: what is given is no price, or of no device.
    """
    from fourminutes.scale.catalogue import known

    prices = {name: one.price_hour for name, one in catalogue.devices.items() if one.price_hour is not None}
    for part in given.split(",") if given else ():
        name, _, text = part.partition("=")
        prices[known("--price: device", _short(name.strip(), catalogue), catalogue.devices)] = _price(part, text)
    return prices


def _short(name: str, catalogue: Catalogue) -> str:
    """H100 for H100-SXM, where only one device begins so."""
    begun = [one for one in catalogue.devices if one.lower().startswith(f"{name.lower()}-")]
    return begun[0] if len(begun) == 1 else name


def _price(part: str, text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise UserError(f"--price {part}: is not DEVICE=PRICE; give a price of a device and hour, such as P40=0.4")
    return price
