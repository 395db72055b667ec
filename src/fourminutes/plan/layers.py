"""What a run consists of: the plan's defaults, a recipe on top of them, the run's own values on top of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from fourminutes.errors import UserError
from fourminutes.plan.recipes import RECIPES, Recipe, read_recipes
from fourminutes.plan.words import Location, did_you_mean, dotted

Place = tuple[str, ...]


class Layer(NamedTuple):
    """Some values of a run, and where they are written: the file, and the keys that lead to them."""

    file: Path
    place: Place
    values: Any


def run_layers(path: Path, raw: dict[str, Any]) -> dict[Place, list[Layer]]:
    """The layers of every run of the plan `raw`, which `path` holds, the lowest first, by the run's place in it.

    Raises:
        UserError: a run names a recipe that isn't there, or the file of recipes is wrong.
    """
    defaults = raw.get("defaults")
    lowest = [Layer(path, ("defaults",), defaults)] if isinstance(defaults, dict) else []
    recipes = cache(read_recipes)  # read once, and only if a run asks for one
    return {
        place: _with_recipe([*lowest, Layer(path, place, {} if own is None else own)], recipes)
        for place, own in _runs(raw)
    }


def laid_together(raw: dict[str, Any], runs: dict[Place, list[Layer]]) -> dict[str, Any]:
    """The plan `raw` with every run complete."""
    plan: dict[str, Any] = raw
    for place, layers in runs.items():
        plan = _replaced(plan, place, reduce(_merged, (layer.values for layer in layers)))
    return plan


def written_at(path: Path, runs: dict[Place, list[Layer]], location: Location) -> tuple[Path, Location]:
    """The file and the keys where the value at `location` of the complete plan was written by its user."""
    place = next((place for place in runs if location[: len(place)] == place), None)
    if place is None:
        return path, location
    layers, inner = runs[place], location[len(place) :]
    layer = next((layer for layer in reversed(layers) if _holds(layer.values, inner)), layers[-1])
    return layer.file, (*layer.place, *inner)


def _runs(raw: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Every run of a plan, those of its sweeps too, with its place; what has not the form of one is passed over."""
    for name, run in _items(raw.get("runs")):
        yield ("runs", name), run
    for name, sweep in _items(raw.get("sweeps")):
        if isinstance(sweep, dict) and "run" in sweep:
            yield ("sweeps", name, "run"), sweep["run"]


def _with_recipe(layers: list[Layer], recipes: Callable[[], dict[str, Recipe]]) -> list[Layer]:
    """`layers` with those of the recipe that they name, below the topmost."""
    naming = next((layer for layer in reversed(layers) if _holds(layer.values, ("recipe",))), None)
    name = naming.values["recipe"] if naming else None
    if naming is None or not isinstance(name, str):
        return layers
    if name not in recipes():
        known = did_you_mean(name, recipes(), f"there are: {', '.join(recipes()) or 'none'}")
        where = dotted((*naming.place, "recipe"), "")
        raise UserError(f"{naming.file}: {where}: {name!r} is no recipe of {RECIPES}{known}")
    return [*layers[:-1], Layer(RECIPES, (name, "run"), recipes()[name].run), layers[-1]]


def _merged(under: Any, over: Any) -> Any:
    """`over` laid on `under`, key by key where both are mappings."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return under | {key: _merged(under[key], value) if key in under else value for key, value in over.items()}


def _replaced(tree: Any, place: Sequence[str], value: Any) -> Any:
    """`tree` with `value` at `place`."""
    return {**tree, place[0]: _replaced(tree[place[0]], place[1:], value)} if place else value


def _holds(values: Any, location: Location) -> bool:
    for key in location:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _items(mapping: Any) -> Iterator[tuple[Any, Any]]:
    return iter(mapping.items() if isinstance(mapping, dict) else ())
