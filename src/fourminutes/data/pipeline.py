"""The DALI graphs for training and validation; one definition for the CPU and the GPU.

A graph gives two outputs: images (n, px, px, 3) float32, normalised, and labels (n,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

from fourminutes.plan import LoaderPlan

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
        chunks: a shard's tar and a DALI index of some of its samples, each.
        rank: this process's number, 0 to world_size - 1.
        world_size: number of processes that share the samples.
        seed: of the order, the same on all ranks; None keeps the order of the shards.
        window_images: size of the buffer that samples are drawn from, in images a rank.
        mapped: read shards by mapping them into memory; else by reads, which hold a file open for every chunk.
    """

    chunks: Sequence[tuple[Path, Path]]
    rank: int
    world_size: int
    seed: int | None = None
    window_images: int = 0
    mapped: bool = True


def image_pipeline(
    reading: Reading,
    settings: LoaderPlan,
    *,
    image_px: int,
    batch: int,
    device_id: int | None,
    augment: bool,
    seed: int,
    checkpoint: bytes | None = None,
) -> Pipeline:
    """The built pipeline of a rank.

    Args:
        reading: which samples, in which order.
        settings: threads, depth of prefetching, augmentation.
        image_px: side of the square images, in pixels.
        batch: images a batch.
        device_id: GPU that decodes, resizes and normalises; None does all on the CPU.
        augment: random crops and mirroring, as for training; else the centre crop of evaluation.
        seed: of the random numbers of this rank.
        checkpoint: what another pipeline of the same arguments saved; None starts at the first epoch.
    """
    pipeline = Pipeline(
        batch_size=batch,
        num_threads=settings.threads,
        device_id=device_id,
        seed=seed,
        prefetch_queue_depth=settings.prefetch_batches,
        enable_checkpointing=True,  # always, since the order of samples may differ without
        checkpoint=checkpoint,
    )
    with pipeline:
        encoded, digits = _read(reading)
        on_gpu = device_id is not None
        images = (
            _random_crop(encoded, image_px, settings, on_gpu) if augment else _centre_crop(encoded, image_px, on_gpu)
        )
        mirror = fn.random.coin_flip() if augment and settings.flip else 0
        normalised = fn.crop_mirror_normalize(
            images, mirror=mirror, mean=_MEAN, std=_STD, dtype=types.FLOAT, output_layout="HWC"
        )
        labels = _labels(digits)
        pipeline.set_outputs(normalised, labels.gpu() if on_gpu else labels)
    pipeline.build()
    return pipeline


def _read(reading: Reading) -> Any:
    """Encoded images and label digits, every sample once an epoch over all ranks."""
    shuffled = reading.seed is not None
    order: dict[str, Any] = (
        {"shuffle_after_epoch_seed": reading.seed, "initial_fill": reading.window_images} if shuffled else {}
    )
    return fn.readers.webdataset(
        name=READER,
        paths=[str(path) for path, _ in reading.chunks],
        index_paths=[str(path) for _, path in reading.chunks],
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        shard_id=reading.rank,
        num_shards=reading.world_size,
        random_shuffle=shuffled,
        shuffle_after_epoch=shuffled,
        stick_to_shard=not shuffled,
        pad_last_batch=True,
        dont_use_mmap=not reading.mapped,
        **order,
    )


def _labels(digits: Any) -> Any:
    """Four ASCII digits to a number."""
    values = fn.cast(digits, dtype=types.INT32) - ord("0")
    return fn.cast(fn.reductions.sum(values * types.Constant(_DIGITS), axes=0), dtype=types.INT64)


def _random_crop(encoded: Any, image_px: int, settings: LoaderPlan, on_gpu: bool) -> Any:
    """RandomResizedCrop of Inception's recipe (arXiv:1409.4842, section 6)."""
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        random_area=[settings.min_area_percent / 100, 1.0],
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
    margin = resized - image_px
    start = fn.cast(margin // 2 + (margin & (margin // 2) & 1), dtype=types.FLOAT)  # adds one where margin is 4k + 3
    scale = fn.cast(sides, dtype=types.FLOAT) / fn.cast(resized, dtype=types.FLOAT)
    return fn.resize(
        images,
        size=[image_px, image_px],
        roi_start=start * scale,
        roi_end=(start + float(image_px)) * scale,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
