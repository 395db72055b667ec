"""Gradients and counts don't depend on how a batch is spread over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_ranks
from training import Bench, made_bench

from fourminutes.comm.launch import Launch
from fourminutes.comm.topology import discover
from fourminutes.data.loader import Batch, validation_loader
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, RunPlan
from fourminutes.record import Manifest
from fourminutes.train.accounting import StepClock
from fourminutes.train.course import Course
from fourminutes.train.evaluate import evaluate
from fourminutes.train.loss_scale import LossScale
from fourminutes.train.ranks import Ranks
from fourminutes.train.setup import distributed
from fourminutes.train.step import accumulate_gradients

MICRO_IMAGES, MICRO_BATCHES = 4, 4


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("equal")) as made:
        yield made


def gradients(launch: Launch, model_plan: ModelPlan, micro_images: int) -> list[torch.Tensor]:
    """The gradients of one global batch of 16 images, of which rank r of P gets every P-th micro-batch."""
    batch = {"global_batch": MICRO_IMAGES * MICRO_BATCHES, "per_device": micro_images}
    changes = {"processes": launch.world_size, "model": model_plan.model_dump(), "reduce": {"bucket_mib": 0.05}}
    settings = RunPlan.model_validate({"batch": batch} | changes)
    model = build_model(model_plan, 5, seed=0)
    parallel, state = distributed(model, settings, discover(launch, None, timeout_s=60))
    generator = torch.Generator().manual_seed(0)
    side = model_plan.image_px
    images = torch.randn(MICRO_IMAGES * MICRO_BATCHES, 3, side, side, generator=generator)
    labels = torch.arange(len(images)) % 5
    micro_batches = list(zip(images.split(micro_images), labels.split(micro_images), strict=True))
    own = (Batch(*each) for each in micro_batches[launch.rank :: launch.world_size])
    parts: Any = SimpleNamespace(
        settings=settings,
        parallel=parallel,
        loss_scale=LossScale.of(settings),
        without_reduce=parallel.no_sync if launch.world_size > 1 else nullcontext,
    )
    accumulate_gradients(parts, Course(StepClock(torch.device("cpu"))), own)
    if state is not None:
        state.close()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_same(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert len(some) == len(others) > 0
    largest = max(float(gradient.abs().max()) for gradient in others)
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest)


def test_with_batch_norm_two_ranks_that_accumulate_are_one_that_runs_the_same_micro_batches():
    plan = ModelPlan(name="resnet_small", width=0.5, image_px=32)
    for each in run_ranks(gradients, 2, plan, MICRO_IMAGES):
        assert_same(each, gradients_alone(plan, MICRO_IMAGES))


def test_without_batch_norm_two_ranks_that_accumulate_are_one_that_takes_the_batch_at_once():
    plan = ModelPlan(name="alexnet", width=0.05, image_px=32, dropout=0)
    for each in run_ranks(gradients, 2, plan, MICRO_IMAGES):
        assert_same(each, gradients_alone(plan, MICRO_IMAGES * MICRO_BATCHES))


def test_with_batch_norm_the_batch_at_once_is_something_else():
    """Or the test above with batch norm would show nothing."""
    plan = ModelPlan(name="resnet_small", width=0.5, image_px=32)
    at_once, apart = (gradients_alone(plan, images) for images in (MICRO_IMAGES * MICRO_BATCHES, MICRO_IMAGES))
    with pytest.raises(AssertionError):
        assert_same(at_once, apart)


def gradients_alone(plan: ModelPlan, micro_images: int) -> list[torch.Tensor]:
    (only,) = run_ranks(gradients, 1, plan, micro_images)
    grads: list[torch.Tensor] = only
    return grads


def evaluated(launch: Launch, folder: Path, manifest: Manifest) -> tuple[float, float, int, tuple[bool, ...]]:
    model_plan = ModelPlan(name="resnet_small", width=0.5, image_px=32)
    settings = RunPlan().loader
    loader = validation_loader(
        folder,
        manifest,
        settings,
        image_px=32,
        batch=4,
        rank=launch.rank,
        world_size=launch.world_size,
        device_id=None,
    )
    ranks = Ranks.of(launch, timeout_s=60)
    expected = manifest.splits["val"].samples
    found = evaluate(build_model(model_plan, 4, seed=3), loader.epoch(), ranks, expected=expected)
    return found.top1_percent, found.top5_percent, found.images, found.hits


def test_validation_over_any_number_of_ranks_gives_the_same_count_and_the_same_hits(bench):
    """19 images: no number of ranks or batches divides them."""
    outcomes = [
        outcome
        for world_size in (1, 2, 3, 4)
        for outcome in run_ranks(evaluated, world_size, bench.data_folder, bench.manifest)
    ]
    assert all(outcome == outcomes[0] for outcome in outcomes)
    top1_percent, _, images, hits = outcomes[0]
    assert images == len(hits) == bench.manifest.splits["val"].samples
    assert all(images % number for number in (2, 3, 4))
    assert 0 < sum(hits) < images
    assert top1_percent == pytest.approx(100 * sum(hits) / images)
