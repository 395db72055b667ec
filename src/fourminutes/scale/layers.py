"""The networks as lists of layers: gradient tensors, arithmetic, and bytes moved. No torch.

Shapes are those of `fourminutes.models`; a test holds them against the networks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from fourminutes.comm.tuner import Readiness
from fourminutes.plan import ModelPlan
from fourminutes.plan.shapes import ResNetStem, alexnet_stem, resnet50_stem, scaled

# Passes of a training step over a layer's multiplications: the input's and the weights' gradients cost one each.
_BACKWARD, _BACKWARD_OF_FIRST = 2.0, 1.0
# Of a multiplication with addition.
_OPERATIONS = 2


@dataclass(frozen=True)
class Layer:
    """A layer with trained parameters.

    Attributes:
        name: as in the torch network.
        kind: what it does.
        tensors: elements of each gradient, in the network's order of parameters.
        macs: multiplications with addition of the forward pass, for one image.
        moved: elements that the forward pass reads and writes of activations, for one image.
    """

    name: str
    kind: Literal["conv", "norm", "linear"]
    tensors: tuple[int, ...]
    macs: float
    moved: float


def layers_of(model: ModelPlan, classes: int) -> tuple[Layer, ...]:
    """The layers of the network that `model` describes, in the order of its parameters.

    Raises:
        UserError: the network has no form for inputs of that size.
    """
    if model.name in ("alexnet", "alexnet_bn"):
        return tuple(_alexnet(model, classes))
    if model.name == "resnet50":
        channels = tuple(scaled(each, model.width) for each in (64, 128, 256, 512))
        return tuple(_resnet(model.image_px, resnet50_stem(model.image_px), (3, 4, 6, 3), channels, 4, classes))
    channels = tuple(scaled(each, model.width) for each in (16, 32, 64))
    stem = ResNetStem(kernel=3, stride=model.stem_stride or 1, pool=False)
    return tuple(_resnet(model.image_px, stem, (1, 1, 1), channels, 1, classes))


@dataclass(frozen=True)
class Roofline:
    """What a device does at best (Williams, Waterman, Patterson 2009): no kernel's start, no cache.

    Attributes:
        operations_s: F, additions and multiplications in a second.
        byte_s: B, bytes that its memory moves in a second.
        element_bytes: b, bytes of an activation or a weight.
    """

    operations_s: float
    byte_s: float
    element_bytes: int

    def forward_s(self, layer: Layer, images: float) -> float:
        """Forward pass over n images, in seconds: t = max(2 n macs / F, b (n moved + weights) / B)."""
        elements = images * layer.moved + sum(layer.tensors)
        return max(_OPERATIONS * images * layer.macs / self.operations_s, self.element_bytes * elements / self.byte_s)


def readiness(layers: Sequence[Layer], backward_s: float) -> Readiness:
    """When each gradient is ready, if a layer's share of the backward pass is that of its arithmetic.

    Args:
        layers: the network, in forward order.
        backward_s: the backward pass, in seconds.
    """
    ends = ready_after([layer.macs for layer in layers])
    sizes = tuple(4 * size for layer in layers for size in layer.tensors)
    ready_s = tuple(backward_s * end / ends[0] for layer, end in zip(layers, ends, strict=True) for _ in layer.tensors)
    return Readiness(sizes, ready_s)


def backward(forward: Sequence[float]) -> list[float]:
    """What the backward pass costs each layer, from what the forward pass does.

    The input's and the weights' gradients cost a forward pass each; the first layer has no gradient of its input.
    """
    return [_BACKWARD_OF_FIRST * forward[0], *(_BACKWARD * cost for cost in forward[1:])]


def ready_after(forward: Sequence[float]) -> list[float]:
    """The cost of the backward pass up to each layer's gradients, which come from the last layer to the first."""
    return list(accumulate(reversed(backward(forward))))[::-1]


def _conv(name: str, channels: tuple[int, int], kernel: int, sides_px: tuple[int, int], *, bias: bool = False) -> Layer:
    """A convolution from `channels[0]` on `sides_px[0]` to `channels[1]` on `sides_px[1]`, all square."""
    weights, out = channels[0] * channels[1] * kernel**2, channels[1] * sides_px[1] ** 2
    tensors = (weights, channels[1]) if bias else (weights,)
    return Layer(name, "conv", tensors, weights * sides_px[1] ** 2, channels[0] * sides_px[0] ** 2 + out)


def _norm(name: str, channels: int, side_px: int) -> Layer:
    """A batch norm with scale and shift; its arithmetic is nothing beside its memory traffic."""
    return Layer(name, "norm", (channels, channels), 0.0, 2.0 * channels * side_px**2)


def _linear(name: str, inputs: int, outputs: int) -> Layer:
    return Layer(name, "linear", (inputs * outputs, outputs), float(inputs * outputs), float(inputs + outputs))


def _alexnet(model: ModelPlan, classes: int) -> Iterator[Layer]:
    stem = alexnet_stem(model.image_px)
    c1, c2, c3, hidden = (scaled(channels, model.width) for channels in (96, 256, 384, 4096))
    norms = () if model.name == "alexnet" else (1, 2, 3, 4, 5) if model.bn_after_pool5 else (1, 2, 3, 4)
    shapes = ((3, c1, stem.kernel), (c1, c2, 5), (c2, c3, 3), (c3, c3, 3), (c3, c2, 3))
    side = model.image_px
    for number, (inputs, outputs, kernel) in enumerate(shapes, start=1):
        after = (side + 2 * stem.padding - kernel) // stem.stride + 1 if number == 1 else side
        yield _conv(f"conv{number}", (inputs, outputs), kernel, (side, after), bias=True)
        side = (after - 3) // 2 + 1 if number in (1, 2, 5) else after
        if number in norms:
            yield _norm(f"norm{number}", outputs, side)
    yield _linear("fc6", c2 * side**2, hidden)
    yield _linear("fc7", hidden, hidden)
    yield _linear("fc8", hidden, classes)


def _resnet(
    image_px: int, stem: ResNetStem, depths: Sequence[int], channels: Sequence[int], expansion: int, classes: int
) -> Iterator[Layer]:
    side = _strided(image_px, stem.stride)
    yield _conv("conv1", (3, channels[0]), stem.kernel, (image_px, side))
    yield _norm("bn1", channels[0], side)
    side = _strided(side, 2) if stem.pool else side
    inputs = channels[0]
    for stage, (depth, width) in enumerate(zip(depths, channels, strict=True), start=1):
        for block in range(depth):
            after = _strided(side, 2) if stage > 1 and block == 0 else side
            outputs = width * expansion
            make = _bottleneck if expansion > 1 else _basic
            yield from make(f"layer{stage}.{block}", inputs, width, side, after)
            if inputs != outputs or side != after:
                yield _conv(f"layer{stage}.{block}.downsample.0", (inputs, outputs), 1, (side, after))
                yield _norm(f"layer{stage}.{block}.downsample.1", outputs, after)
            inputs, side = outputs, after
    yield _linear("fc", inputs, classes)


def _bottleneck(name: str, inputs: int, width: int, side: int, after: int) -> Iterator[Layer]:
    """1x1, 3x3 with the stride, 1x1."""
    yield _conv(f"{name}.conv1", (inputs, width), 1, (side, side))
    yield _norm(f"{name}.bn1", width, side)
    yield _conv(f"{name}.conv2", (width, width), 3, (side, after))
    yield _norm(f"{name}.bn2", width, after)
    yield _conv(f"{name}.conv3", (width, 4 * width), 1, (after, after))
    yield _norm(f"{name}.bn3", 4 * width, after)


def _basic(name: str, inputs: int, width: int, side: int, after: int) -> Iterator[Layer]:
    """3x3 with the stride, 3x3."""
    yield _conv(f"{name}.conv1", (inputs, width), 3, (side, after))
    yield _norm(f"{name}.bn1", width, after)
    yield _conv(f"{name}.conv2", (width, width), 3, (after, after))
    yield _norm(f"{name}.bn2", width, after)


def _strided(side_px: int, stride: int) -> int:
    """Side of the output with padding that keeps the size but for the stride."""
    return -(-side_px // stride)
