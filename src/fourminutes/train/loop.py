"""The training loop: each function a step of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fourminutes.data.loader import Batch
from fourminutes.errors import Interrupted, RunFailed
from fourminutes.optim import set_rate, step_rate
from fourminutes.record import Epoch
from fourminutes.train.checkpoint import save
from fourminutes.train.course import Course, own_state, shared_state
from fourminutes.train.display import Display
from fourminutes.train.evaluate import Evaluation, average_running_statistics, evaluate
from fourminutes.train.interrupt import Notice, NoticeBoard
from fourminutes.train.setup import Parts


def train_epochs(
    parts: Parts, course: Course, display: Display, *, checkpoints: Path, asked_to_stop: Callable[[], bool]
) -> None:
    """Train from where `course` is to the last epoch's end, with an evaluation after each epoch.

    Raises:
        Interrupted: a rank was asked to stop; everything is saved.
        RunFailed: the loss is no number any more.
    """
    board = NoticeBoard(parts.ranks)
    for epoch in range(course.step // parts.steps_per_epoch, parts.settings.epochs):
        batches = parts.training.epoch()
        last_step = (epoch + 1) * parts.steps_per_epoch
        while course.step < last_step:
            loss = take_step(parts, course, batches)
            display.advance(loss)
            is_durable = course.step == last_step or _is_due(parts, course)
            heard = board.exchange(_notice(loss, asked_to_stop), is_durable=is_durable)
            if heard is Notice.DIVERGED:
                raise _diverged(course)
            if course.step == last_step:
                course.epochs.append(_close_epoch(parts, course, batches))
                display.epoch(course.epochs[-1])
            keep_safe(parts, course, checkpoints, stop=heard is Notice.STOP)


def take_step(parts: Parts, course: Course, batches: Iterator[Batch]) -> float:
    """One optimizer step on one global batch; returns this rank's mean loss over its share of it."""
    set_rate(parts.optimizer, current_rate(parts, course.step + 1))
    loss = accumulate_gradients(parts, course, batches)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    course.clock.lap("optimizer")
    course.step += 1
    course.loss_sum += loss
    return loss


def accumulate_gradients(parts: Parts, course: Course, batches: Iterator[Batch]) -> float:
    """Leave the gradient of the mean loss over the global batch in `.grad` (fp32), on every rank the same.

    With K micro-batches each loss is divided by K, and only the last one's backward pass averages over the ranks.
    """
    micro_batches = parts.settings.micro_batches
    losses: list[Tensor] = []
    # What came before, such as progress or waiting for other ranks, is no wait for input.
    course.clock.lap("other")
    for number in range(micro_batches):
        batch = next(batches)
        course.clock.lap("input_wait")
        with nullcontext() if number == micro_batches - 1 else parts.without_reduce():
            loss = batch_loss(parts, batch) / micro_batches
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        course.clock.lap("compute")
    return float(torch.stack(losses).sum())


def batch_loss(parts: Parts, batch: Batch) -> Tensor:
    """Cross-entropy with label smoothing, in nats, the mean over the batch: a scalar in fp32."""
    with parts.autocast():
        logits = parts.network(batch.images)
    return functional.cross_entropy(logits.float(), batch.labels, label_smoothing=parts.settings.label_smoothing)


def current_rate(parts: Parts, step: int) -> float:
    """The rate of step number `step`, counted from 1."""
    settings = parts.settings
    return step_rate(settings.schedule, step, steps_per_epoch=parts.steps_per_epoch, epochs=settings.epochs)


def keep_safe(parts: Parts, course: Course, checkpoints: Path, *, stop: bool) -> None:
    """Save a checkpoint where one is due, or where the run is to stop, and stop there.

    Raises:
        Interrupted: on `stop`, unless the last step is done anyway.
    """
    if course.step == parts.total_steps or not (stop or _is_due(parts, course)):
        return
    course.clock.lap("other")
    book_exposed_reduce(parts, course)
    shared = shared_state(parts, course, ended="interrupted" if stop else "running")
    own = own_state(parts, course)
    keep = parts.settings.checkpoint.keep
    save(checkpoints, course.step, shared=shared, own=own, ranks=parts.ranks, keep=keep)
    course.clock.lap("checkpoint")
    if stop:
        raise Interrupted(f"interrupted; checkpoint at step {course.step}; run the same command to go on")


def book_exposed_reduce(parts: Parts, course: Course) -> None:
    """Take the wait for gradients out of the time of the backward passes, where it was measured."""
    if parts.reduce_state is not None:
        course.clock.move(parts.reduce_state.take_exposed_s(), "compute", "exposed_reduce")


def _close_epoch(parts: Parts, course: Course, batches: Iterator[Batch]) -> Epoch:
    """Pass over the remainder that fills no global batch, evaluate, and sum the epoch up."""
    for _ in batches:
        pass
    course.clock.lap("other")
    average_running_statistics(parts.model, parts.ranks)
    evaluation = evaluate(
        parts.model, parts.validation.epoch(), parts.ranks, expected=parts.val_images, autocast=parts.autocast()
    )
    course.clock.lap("evaluation")
    return _summed_up(parts, course, evaluation)


def _summed_up(parts: Parts, course: Course, evaluation: Evaluation) -> Epoch:
    book_exposed_reduce(parts, course)
    times = course.clock.take()
    images = parts.steps_per_epoch * parts.settings.batch.global_batch
    loss_sum = float(parts.ranks.sum(torch.tensor(course.loss_sum, dtype=torch.float64)))
    course.loss_sum = 0.0
    return Epoch(
        epoch=len(course.epochs) + 1,
        steps=course.step,
        train_loss=loss_sum / parts.ranks.world_size / parts.steps_per_epoch,
        train_images=images,
        dropped_images=parts.train_images - images,
        rate=current_rate(parts, course.step),
        val_loss=evaluation.loss,
        top1_percent=evaluation.top1_percent,
        top5_percent=evaluation.top5_percent,
        val_images=evaluation.images,
        images_per_s=images / (times.total_s - times.evaluation_s - times.checkpoint_s),
        times=times,
    )


def _is_due(parts: Parts, course: Course) -> bool:
    return course.step % parts.settings.checkpoint.every_steps == 0


def _notice(loss: float, asked_to_stop: Callable[[], bool]) -> Notice:
    if not math.isfinite(loss):
        return Notice.DIVERGED
    return Notice.STOP if asked_to_stop() else Notice.NONE


def _diverged(course: Course) -> RunFailed:
    return RunFailed(
        f"the run diverged: the loss is no finite number by step {course.step}; lower schedule.base_rate or lengthen "
        "schedule.warmup_epochs"
    )
