"""The DALI graphs for training and validation; one definition for the CPU and the GPU.

A graph gives two outputs: images (n, px, px, 3) float32, normalised, and labels (n,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvidia.dali.math as dali_math
import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

READER = "reader"

_MEAN = [255 * mean for mean in (0.485, 0.456, 0.406)]
_STD = [255 * std for std in (0.229, 0.224, 0.225)]
_DIGITS = np.array([1000, 100, 10, 1], np.int32)
_ASPECT_RATIO = [3 / 4, 4 / 3]
_RESIZE, _CROP = 256, 224  # of evaluation, in the proportion that the field uses since AlexNet


@dataclass(frozen=True)
class Reading:
    """Which samples a rank reads, in which order.

    Attributes:
        tars: a path for each chunk, so that a shard's path occurs once a chunk.
        indices: the chunks' DALI index files.
        rank: this process's number, 0 to world_size - 1.
        world_size: number of processes that share the samples.
        seed: of the order, the same on all ranks; None keeps the order of the shards.
        window_images: size of the buffer that samples are drawn from, in images a rank.
    """

    tars: Sequence[Path]
    indices: Sequence[Path]
    rank: int
    world_size: int
    seed: int | None
    window_images: int


@dataclass(frozen=True)
class Augmentation:
    """Random crops, of `min_area` to 1 of the image's area, and mirroring of one half."""

    min_area: float
    flip: bool


@pipeline_def(enable_checkpointing=True)
def image_pipeline(reading: Reading, *, image_px: int, augmentation: Augmentation | None) -> Any:
    """The graph; without `augmentation` it is that of evaluation. Keyword arguments of `Pipeline` are added."""
    on_gpu = Pipeline.current().device_id is not None
    encoded, digits = _read(reading)
    if augmentation is None:
        images, mirror = _centre_crop(encoded, image_px, on_gpu), 0
    else:
        images = _random_crop(encoded, image_px, augmentation, on_gpu)
        mirror = fn.random.coin_flip() if augmentation.flip else 0
    normalised = fn.crop_mirror_normalize(
        images, mirror=mirror, mean=_MEAN, std=_STD, dtype=types.FLOAT, output_layout="HWC"
    )
    labels = _labels(digits)
    return normalised, labels.gpu() if on_gpu else labels


def _read(reading: Reading) -> Any:
    """Encoded images and label digits, every sample once an epoch over all ranks."""
    shuffled = reading.seed is not None
    order = {"shuffle_after_epoch_seed": reading.seed, "initial_fill": reading.window_images} if shuffled else {}
    return fn.readers.webdataset(
        name=READER,
        paths=[str(path) for path in reading.tars],
        index_paths=[str(path) for path in reading.indices],
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        shard_id=reading.rank,
        num_shards=reading.world_size,
        random_shuffle=shuffled,
        shuffle_after_epoch=shuffled,
        stick_to_shard=not shuffled,
        pad_last_batch=True,
        **order,
    )


def _labels(digits: Any) -> Any:
    """Four ASCII digits to a number."""
    values = fn.cast(digits, dtype=types.INT32) - ord("0")
    return fn.cast(fn.reductions.sum(values * types.Constant(_DIGITS), axes=0), dtype=types.INT64)


def _random_crop(encoded: Any, image_px: int, augmentation: Augmentation, on_gpu: bool) -> Any:
    """RandomResizedCrop of Inception's recipe (arXiv:1409.4842, section 6)."""
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        random_area=[augmentation.min_area, 1.0],
        random_aspect_ratio=_ASPECT_RATIO,
    )
    return fn.resize(images, size=[image_px, image_px], interp_type=types.INTERP_LINEAR, antialias=True)


def _centre_crop(encoded: Any, image_px: int, on_gpu: bool) -> Any:
    """Resize the shorter side to image_px x 256/224 and crop the centre, as one resize of a region of interest.

    With shorter side s pixels after resizing, the resized image has n = (h, w) * s // min(h, w) pixels and the crop
    starts at a = round((n - image_px) / 2), half to even, as torchvision and Pillow have it. In the original's pixels
    that region is (a, a + image_px) * (h, w) / n. Two operators, one after the other, would round twice.
    """
    images = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    sides = fn.cast(fn.slice(shape, 0, 2, axes=[0]), dtype=types.INT32)
    resized = sides * round(image_px * _RESIZE / _CROP) // fn.reductions.min(sides)
    margin = fn.cast(resized - image_px, dtype=types.FLOAT)
    start = _round_half_to_even(margin / 2.0)
    scale = fn.cast(sides, dtype=types.FLOAT) / fn.cast(resized, dtype=types.FLOAT)
    return fn.resize(
        images,
        size=[image_px, image_px],
        roi_start=start * scale,
        roi_end=(start + float(image_px)) * scale,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _round_half_to_even(halves: Any) -> Any:
    """Python's `round`, of numbers that are multiples of one half."""
    return 2.0 * dali_math.floor(halves / 2.0 + 0.5) + 0 * halves
