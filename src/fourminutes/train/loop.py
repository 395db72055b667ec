"""The training loop: each function a step of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from fourminutes.data.loader import Batch
from fourminutes.errors import Interrupted, RunFailed
from fourminutes.optim import flushed_share, set_rate, step_rate
from fourminutes.record import Epoch
from fourminutes.train.batchnorm import average_running_statistics, recalibrate
from fourminutes.train.course import Course, own_state, shared_state
from fourminutes.train.evaluate import Evaluation, evaluate
from fourminutes.train.interrupt import StopBoard
from fourminutes.train.listen import Listener, StepNews
from fourminutes.train.precision import stores_half, uses_loss_scale
from fourminutes.train.setup import Parts
from fourminutes.train.writer import CheckpointWriter


def train_epochs(
    parts: Parts,
    course: Course,
    listener: Listener,
    writer: CheckpointWriter | None,
    *,
    asked_to_stop: Callable[[], bool],
) -> None:
    """Train from where `course` is to the last epoch's end, with an evaluation after each epoch.

    Raises:
        Interrupted: a rank was asked to stop; everything is saved, where there is a `writer`.
        RunFailed: gradients stay no finite numbers, or weights are none at the end of an epoch.
    """
    board = StopBoard(parts.ranks)
    for epoch in range(course.batch // parts.steps_per_epoch, parts.settings.epochs):
        listener.epoch_begins(epoch + 1)
        batches = parts.training.epoch()
        last_batch = (epoch + 1) * parts.steps_per_epoch
        while course.batch < last_batch:
            listener.step(take_step(parts, course, batches))
            at_epoch_end = course.batch == last_batch
            is_durable = at_epoch_end or _is_due(parts, course)
            stop = board.exchange(asked_to_stop(), is_durable=is_durable)
            if at_epoch_end:
                _require_finite_weights(parts, course)
                course.epochs.append(_close_epoch(parts, course, listener, batches))
                listener.epoch_ends(course.epochs[-1])
            if course.batch < parts.total_steps and (stop or is_durable):
                _keep_safe(parts, course, writer, at_epoch_end=at_epoch_end, stop=stop)


def take_step(parts: Parts, course: Course, batches: Iterator[Batch]) -> StepNews:
    """One optimizer step on one global batch; the news holds this rank's mean loss over its share of it.

    Where the averaged gradient holds anything but finite numbers the step is skipped. Every rank has the same bits of
    it, so all skip together, and nothing but the loss scale remembers: weights, momentum, batch norm's statistics and
    the place in the schedule are as they were.

    Raises:
        RunFailed: that many steps in a row were skipped.
    """
    rate = current_rate(parts, course.step + 1)
    statistics = _running_statistics(parts)
    before = [buffer.clone() for buffer in statistics]
    loss = accumulate_gradients(parts, course, batches)
    finite = parts.loss_scale.unscale_([weight.grad for weight in parts.weights if weight.grad is not None])
    course.batch += 1
    if math.isfinite(loss):
        course.losses.append(loss)
    if finite:
        _update(parts, course, rate)
    else:
        torch._foreach_copy_(statistics, before)
        course.skipped += 1
    parts.loss_scale.update(finite)
    parts.optimizer.zero_grad(set_to_none=True)
    course.clock.lap("optimizer")
    if (skips := parts.loss_scale.consecutive_skips) >= parts.settings.max_skipped_steps:
        raise _diverged(parts, course, f"gradients are no finite numbers, {skips} skipped steps in a row")
    return StepNews(course.step, course.batch, loss, rate, loss_scale(parts), skipped=not finite)


def _update(parts: Parts, course: Course, rate: float) -> None:
    """The optimizer's step, and on the epoch's last one what half precision loses of it."""
    set_rate(parts.optimizer, rate)
    if stores_half(parts.settings.precision) and course.batch % parts.steps_per_epoch == 0:
        course.flushed = flushed_share(parts.optimizer)
    parts.optimizer.step()
    course.step += 1


def accumulate_gradients(parts: Parts, course: Course, batches: Iterator[Batch]) -> float:
    """Leave the gradient of the scaled mean loss over the global batch in `.grad`, on every rank the same.

    With K micro-batches each loss is divided by K, gradients add up in the parameters' number format (fp32 but in
    half-lars), and only the last one's backward pass averages over the ranks. So in fp16 the backward passes see the
    loss scale divided by K. Returns the mean loss, unscaled.
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
            course.clock.lap("forward")
            parts.loss_scale.scaled(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        course.clock.lap("backward")
    return float(torch.stack(losses).sum())


def batch_loss(parts: Parts, batch: Batch) -> Tensor:
    """Cross-entropy with label smoothing, in nats, the mean over the batch: a scalar in fp32."""
    logits = parts.parallel(batch.images)
    return functional.cross_entropy(logits, batch.labels, label_smoothing=parts.settings.label_smoothing)


def current_rate(parts: Parts, step: int) -> float:
    """The rate of step number `step`, counted from 1."""
    settings = parts.settings
    return step_rate(settings.rates, step, steps_per_epoch=parts.steps_per_epoch, epochs=settings.epochs)


def loss_scale(parts: Parts) -> float | None:
    """The factor on the loss, where the precision has one."""
    return parts.loss_scale.value if uses_loss_scale(parts.settings.precision) else None


def _running_statistics(parts: Parts) -> list[Tensor]:
    """Batch norm's running means and variances, which a forward pass changes."""
    return [buffer for buffer in parts.model.buffers() if buffer.is_floating_point()]


def _keep_safe(
    parts: Parts, course: Course, writer: CheckpointWriter | None, *, at_epoch_end: bool, stop: bool
) -> None:
    """Save a checkpoint, if there is a `writer`, and stop there if that was asked for.

    Raises:
        Interrupted: on `stop`.
        RunFailed: the weights are no finite numbers any more; the checkpoints before are left as they are.
    """
    course.clock.lap("other")
    if writer is not None:
        _require_finite_weights(parts, course)
        book_exposed_reduce(parts, course)
        writer.save(
            course.batch,
            shared=shared_state(parts, course, ended="interrupted" if stop else "running"),
            own=own_state(parts, course),
            at_epoch_end=at_epoch_end,
            is_best=at_epoch_end and parts.settings.checkpoint.keep_best and course.last_is_best,
        )
    if stop and writer is not None:
        writer.wait()
    course.clock.lap("checkpoint")
    course.is_due = False
    if stop:
        raise Interrupted(f"interrupted; checkpoint at step {course.batch}; run the same command to go on")


def book_exposed_reduce(parts: Parts, course: Course) -> None:
    """Take the wait for gradients out of the time of the backward passes, where it was measured."""
    if parts.reduce_state is not None:
        course.clock.move(parts.reduce_state.take_exposed_s(), "backward", "exposed_reduce")


def _close_epoch(parts: Parts, course: Course, listener: Listener, batches: Iterator[Batch]) -> Epoch:
    """Pass over the remainder that fills no global batch, evaluate, and sum the epoch up."""
    for _ in batches:
        pass
    course.clock.lap("other")
    epoch = len(course.epochs) + 1
    listener.evaluation_begins(epoch)
    if parts.settings.evaluation.recalibration_images:
        recalibrate(parts.network, parts.model, parts.input.recalibration(epoch), parts.ranks)
    else:
        average_running_statistics(parts.model, parts.ranks)
    evaluation = evaluate(parts.network, parts.validation.epoch(), parts.ranks, expected=parts.val_images)
    course.hits = evaluation.hits
    course.clock.lap("evaluation")
    return _summed_up(parts, course, evaluation)


def _summed_up(parts: Parts, course: Course, evaluation: Evaluation) -> Epoch:
    book_exposed_reduce(parts, course)
    times = course.clock.take()
    images = parts.steps_per_epoch * parts.settings.batch.global_batch
    losses = torch.tensor([sum(course.losses), len(course.losses)], dtype=torch.float64)
    loss_sum, loss_count = parts.ranks.sum(losses).tolist()
    if not loss_count:
        raise _diverged(parts, course, "no loss of the epoch was a finite number")
    summed_up = Epoch(
        epoch=len(course.epochs) + 1,
        steps=course.step,
        train_loss=loss_sum / loss_count,
        train_images=images,
        dropped_images=parts.train_images - images,
        skipped_steps=course.skipped,
        loss_scale=loss_scale(parts),
        flushed_percent=None if course.flushed is None else 100 * course.flushed,
        rate=current_rate(parts, max(course.step, 1)),
        val_loss=evaluation.loss if math.isfinite(evaluation.loss) else None,
        top1_percent=evaluation.top1_percent,
        top5_percent=evaluation.top5_percent,
        val_images=evaluation.images,
        images_per_s=images / (times.total_s - times.evaluation_s - times.checkpoint_s),
        times=times,
    )
    course.losses, course.skipped, course.flushed = [], 0, None
    return summed_up


def _is_due(parts: Parts, course: Course) -> bool:
    """Whether to save now: not while steps are skipped, so that the last checkpoint is from before a divergence."""
    course.is_due = course.is_due or course.batch % parts.settings.checkpoint.every_steps == 0
    return course.is_due and not parts.loss_scale.consecutive_skips


def _require_finite_weights(parts: Parts, course: Course) -> None:
    """All ranks have the same weights, and so come to the same answer."""
    if not all(bool(weight.isfinite().all()) for weight in parts.weights):
        raise _diverged(parts, course, "weights are no finite numbers")


def _diverged(parts: Parts, course: Course, symptom: str) -> RunFailed:
    way_out = "lower schedule.base_rate or lengthen schedule.warmup_epochs"
    if (scale := loss_scale(parts)) is not None:
        way_out += f", or lower loss_scale.initial (the scale is {scale:g})"
    return RunFailed(
        f"the run diverged: after batch {course.batch} {symptom}; {way_out}; what was saved before is intact"
    )
