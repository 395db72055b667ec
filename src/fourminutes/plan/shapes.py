"""What the networks' shapes follow from: widths, and the first layers that fit an input's size. No torch."""

from __future__ import annotations

from typing import NamedTuple

from fourminutes.errors import UserError

SMALLEST_POOL5_PX = 3


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8, which the devices' kernels like; 8 at least."""
    return max(8, 8 * round(channels * width / 8))


class AlexNetStem(NamedTuple):
    """The first convolution, in pixels."""

    kernel: int
    stride: int
    padding: int


ALEXNET_STEMS = (AlexNetStem(11, 4, 2), AlexNetStem(7, 2, 3), AlexNetStem(5, 1, 2))


def alexnet_stem(image_px: int) -> AlexNetStem:
    """The stem of the largest stride that leaves pool5 at least 3 x 3.

    Raises:
        UserError: none does.
    """
    for stem in ALEXNET_STEMS:
        if pool5_px(stem, image_px) >= SMALLEST_POOL5_PX:
            return stem
    raise UserError(f"model.image_px: {image_px} px are too few for AlexNet; give it 31 or more, or take resnet_small")


def pool5_px(stem: AlexNetStem, image_px: int) -> int:
    """The side of pool5's output: the stem, then three times a window of 3 px every 2 px."""
    side = (image_px + 2 * stem.padding - stem.kernel) // stem.stride + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


class ResNetStem(NamedTuple):
    """What comes before the first stage."""

    kernel: int  # side of the first convolution, in pixels
    stride: int  # likewise
    pool: bool  # whether max-pooling halves what it makes


def resnet50_stem(image_px: int) -> ResNetStem:
    """The stem that leaves the last stage more than a pixel: see `fourminutes.models.resnet.resnet50`."""
    return ResNetStem(kernel=7, stride=2 if image_px >= 56 else 1, pool=image_px >= 112)
