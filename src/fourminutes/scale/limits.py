"""What bounds a cluster's batch: memory of a device, and recipes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fourminutes.errors import UserError
from fourminutes.plan import ModelPlan
from fourminutes.plan.recipes import Recipe
from fourminutes.scale.catalogue import Catalogue, Precision
from fourminutes.scale.layers import Layer, layers_of

Trained = Literal["resnet50", "alexnet_bn"]
#: No rate was measured with fewer images a device, and batch norm's statistics get poor.
LEAST_IMAGES = 32
CLASSES = 1000
# Bytes a parameter: fp16 weights, gradients and their copy on the way, fp32 masters and momentum; or all in fp32.
_STATE_BYTES: Mapping[Precision, int] = {"half": 2 + 2 + 2 + 4 + 4, "fp32": 4 + 4 + 4 + 4}
ELEMENT_BYTES: Mapping[Precision, int] = {"half": 2, "fp32": 4}
_GIB = 2**30
# More than this at once gains nothing on any device, and nobody measured it.
_MOST_IMAGES = 512


@cache
def layers(model: Trained) -> tuple[Layer, ...]:
    """The network, with ImageNet's classes."""
    return layers_of(ModelPlan(name=model), CLASSES)


@cache
def parameters(model: Trained) -> int:
    """Number of trained parameters."""
    return sum(sum(layer.tensors) for layer in layers(model))


def memory_gib(model: Trained, precision: Precision, images: int, reserve_gib: float) -> float:
    """What training takes of a device's memory, in GiB: the state of every parameter, activations, and the reserve.

    Activations are what every layer reads and writes, b x moved elements: a layer's output stays for the backward pass
    as its input does.
    """
    moved = _moved(model) * ELEMENT_BYTES[precision]
    return (parameters(model) * _STATE_BYTES[precision] + images * moved) / _GIB + reserve_gib


@cache
def _moved(model: Trained) -> float:
    return sum(layer.moved for layer in layers(model))


def most_images(catalogue: Catalogue, device: str, model: Trained, precision: Precision) -> int:
    """The largest multiple of 8 images, up to 512, that fits on a device; 0 where none does."""
    room_gib, reserve_gib = catalogue.devices[device].memory_gib.value, catalogue.assumptions.reserve_gib.value
    empty_gib = memory_gib(model, precision, 0, reserve_gib)
    an_image_gib = memory_gib(model, precision, 1, reserve_gib) - empty_gib
    return min(_MOST_IMAGES, max(0, int((room_gib - empty_gib) / an_image_gib) // 8 * 8))


@dataclass(frozen=True)
class Budget:
    """How many epochs a recipe takes, up to its batch.

    Attributes:
        recipe: its name, or where the number comes from.
        batch: images a step.
        epochs: of the whole training.
        certainty: of the recipe.
    """

    recipe: str
    batch: int
    epochs: float
    certainty: str


def budgets(recipes: Mapping[str, Recipe], model: Trained) -> tuple[Budget, ...]:
    """The largest batches for each number of epochs, rising in both.

    A batch takes the fewest epochs of all recipes for as large or larger ones: a smaller batch needs no more.

    Raises:
        UserError: no recipe is for this network.
    """
    fitting = [_budget(name, one) for name, one in recipes.items() if _part(one.run, "model").get("name") == model]
    kept: list[Budget] = []
    for one in sorted(fitting, key=lambda one: (-one.batch, one.epochs)):
        if not kept or one.epochs < kept[-1].epochs:
            kept.append(one)
    if not kept:
        raise UserError(f"model {model}: no recipe is for it; give --batch and --epochs")
    return tuple(reversed(kept))


def _budget(name: str, recipe: Recipe) -> Budget:
    return Budget(name, int(_part(recipe.run, "batch")["global_batch"]), int(recipe.run["epochs"]), recipe.certainty)


def _part(run: dict[str, Any], key: str) -> dict[str, Any]:
    part = run.get(key)
    return part if isinstance(part, dict) else {}
