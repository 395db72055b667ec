"""What a device can hold, and what batches are known to train: the planner's limits, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourminutes.plan import ModelName
from fourminutes.plan.recipes import read_recipes
from fourminutes.scale.catalogue import Format
from fourminutes.scale.layers import Layer

#: Fewer images a device leave batch norm's statistics to noise, and most of a device idle.
LEAST_IMAGES = 8
# Weights, momentum and gradient in fp32; with half precision fp16 weights and the buffer for the wire besides.
_STATE_BYTES: dict[Format, int] = {"fp32": 12, "half": 16}
_ACTIVATION_BYTES: dict[Format, int] = {"fp32": 4, "half": 2}
# Kernels' work space, the allocator's gaps, and the library's own.
_USABLE, _WORK_SPACE = 0.9, 1.3


@dataclass(frozen=True)
class Schedule:
    """A batch that is known to train, and for how long.

    Attributes:
        recipe: its name in config/recipes.yaml.
        batch: images a step.
        epochs: passes over the training set.
    """

    recipe: str
    batch: int
    epochs: float


def schedules_of(model: ModelName) -> list[Schedule]:
    """The recipes of a network, by rising batch.

    Raises:
        UserError: the file of recipes is missing or wrong.
    """
    runs = {name: recipe.run for name, recipe in read_recipes().items()}
    found = [
        Schedule(name, int(run["batch"]["global_batch"]), float(run["epochs"]))
        for name, run in runs.items()
        if run.get("model", {}).get("name") == model
    ]
    return sorted(found, key=lambda one: (one.batch, one.epochs))


def memory_gib(layers: Sequence[Layer], images: int, form: Format) -> float:
    """What a step with so many images takes on a device, in GiB.

    Weights, momentum and gradients, and of every layer the activations that its backward pass reads: half of what the
    forward pass reads and writes, since one layer's output is the next one's input. A third more is work space.
    """
    parameters = sum(sum(layer.tensors) for layer in layers)
    activations = images * sum(layer.moved for layer in layers) / 2
    state, kept = parameters * _STATE_BYTES[form], activations * _ACTIVATION_BYTES[form]
    return _WORK_SPACE * (state + kept) / 2**30


def most_images(layers: Sequence[Layer], device_gib: float, form: Format) -> int:
    """The most images that a device holds in a step, a power of two; 0 where not even one."""
    images = 0
    while memory_gib(layers, 2 * images or 1, form) <= _USABLE * device_gib and images < 2**14:
        images = 2 * images or 1
    return images
