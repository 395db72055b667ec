"""The training loop: each function a step of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from fourminutes.comm.whereabouts import HERE
from fourminutes.data.loader import Batch
from fourminutes.errors import Interrupted, RunFailed
from fourminutes.optim import set_rate, step_rate
from fourminutes.record import Epoch
from fourminutes.train.agreement import require_no_drift
from fourminutes.train.batchnorm import average_running_statistics, recalibrate
from fourminutes.train.capture import CapturedStep, CudaGraphs
from fourminutes.train.course import Course, own_state, shared_state
from fourminutes.train.evaluate import Evaluation, evaluate
from fourminutes.train.interrupt import StopBoard
from fourminutes.train.listen import Listener, StepNews
from fourminutes.train.precision import uses_loss_scale
from fourminutes.train.setup import Parts
from fourminutes.train.step import Stepper, eager_step
from fourminutes.train.writer import CheckpointWriter


def train_epochs(
    parts: Parts,
    course: Course,
    stepper: Stepper,
    listener: Listener,
    writer: CheckpointWriter | None,
    *,
    asked_to_stop: Callable[[], int],
) -> None:
    """Train from where `course` is to the last epoch's end, with an evaluation after each epoch.

    Raises:
        Interrupted: a rank was asked to stop; everything is saved, where there is a `writer`.
        RunFailed: gradients stay no finite numbers, weights are none at the end of an epoch, or a rank has drifted.
    """
    board = StopBoard(parts.ranks)
    course.clock.pass_over()
    for epoch in range(course.batch // parts.steps_per_epoch, parts.settings.epochs):
        listener.epoch_begins(epoch + 1)
        batches = parts.training.epoch()
        last_batch = (epoch + 1) * parts.steps_per_epoch
        while course.batch < last_batch:
            one_step(parts, course, batches, stepper, listener)
            at_epoch_end = course.batch == last_batch
            is_durable = at_epoch_end or _is_due(parts, course)
            stop = board.exchange(asked_to_stop(), is_durable=is_durable)
            if at_epoch_end:
                _require_finite_weights(parts, course)
                course.epochs.append(_close_epoch(parts, course, listener, batches))
                listener.epoch_ends(course.epochs[-1])
            if course.batch < parts.total_steps and (stop or is_durable):
                _keep_safe(parts, course, writer, at_epoch_end=at_epoch_end, stop=stop)


def one_step(parts: Parts, course: Course, batches: Iterator[Batch], stepper: Stepper, listener: Listener) -> None:
    """Take one step, tell of it, and compare the ranks' weights where that is due.

    Raises:
        RunFailed: too many steps in a row were skipped, or a rank has drifted.
    """
    with _traced(parts, course, listener):
        news = take_step(parts, course, batches, stepper)
    HERE.begin("end of the step")
    listener.step(news)
    _check_drift(parts, course)


def take_step(parts: Parts, course: Course, batches: Iterator[Batch], stepper: Stepper) -> StepNews:
    """One optimizer step on one global batch; the news holds this rank's mean loss over its share of it.

    Where the averaged gradient holds anything but finite numbers the step is skipped, and little is left of it: the
    loss scale, the pictures seen, batch norm's count of them. The place in the schedule is as it was.

    Raises:
        RunFailed: that many steps in a row were skipped.
    """
    HERE.begin_step(course.batch + 1)
    rate = current_rate(parts, course.step + 1)
    set_rate(parts.optimizer, rate)
    loss, finite = stepper(course, batches)
    course.batch += 1
    course.step += finite
    course.skipped += not finite
    if math.isfinite(loss):
        course.losses.append(loss)
    parts.loss_scale.update(finite)
    course.clock.lap("optimizer")
    if (skips := parts.loss_scale.consecutive_skips) >= parts.settings.max_skipped_steps:
        raise _diverged(parts, course, f"gradients are no finite numbers, {skips} skipped steps in a row")
    return StepNews(course.step, course.batch, loss, rate, loss_scale(parts), skipped=not finite)


def stepper_of(parts: Parts) -> Stepper:
    """How the run takes its steps; to be asked once weights and optimizer are where it begins or goes on."""
    if parts.settings.cuda_graph:
        return CapturedStep(parts, CudaGraphs())
    return partial(eager_step, parts)


def current_rate(parts: Parts, step: int) -> float:
    """The rate of step number `step`, counted from 1."""
    settings = parts.settings
    return step_rate(settings.rates, step, steps_per_epoch=parts.steps_per_epoch, epochs=settings.epochs)


def loss_scale(parts: Parts) -> float | None:
    """The factor on the loss, where the precision has one."""
    return parts.loss_scale.value if uses_loss_scale(parts.settings.precision) else None


def _keep_safe(parts: Parts, course: Course, writer: CheckpointWriter | None, *, at_epoch_end: bool, stop: int) -> None:
    """Save a checkpoint, if there is a `writer`, and stop there if a signal, `stop`, asked for it (0: none did).

    Raises:
        Interrupted: on `stop`.
        RunFailed: the weights are no finite numbers any more; the checkpoints before are left as they are.
    """
    course.clock.lap("other")
    HERE.begin("checkpoint")
    if writer is not None:
        _require_finite_weights(parts, course)
        book_exposed_reduce(parts, course)
        writer.save(
            course.batch,
            shared=shared_state(parts, course, by_signal=stop or None),
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
    HERE.begin("rest of the epoch's input")
    for _ in batches:
        pass
    HERE.begin("batch norm's statistics")
    course.clock.lap("other")
    epoch = len(course.epochs) + 1
    listener.evaluation_begins(epoch)
    if parts.settings.evaluation.recalibration_images:
        recalibrate(parts.network, parts.model, parts.input.recalibration(epoch), parts.ranks)
    else:
        average_running_statistics(parts.model, parts.ranks)
    HERE.begin("evaluation")
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


@contextmanager
def _traced(parts: Parts, course: Course, listener: Listener) -> Iterator[None]:
    """Where the coming step is the one to be traced, trace its reduction, and tell of it."""
    state = parts.reduce_state
    if state is None or state.settings.trace_step != course.batch + 1:
        yield
        return
    tracer = state.trace(parts.device)
    yield
    state.end_trace()
    listener.reduction_traced(parts.ranks.gather(tracer.spans()))


def _check_drift(parts: Parts, course: Course) -> None:
    every = parts.settings.reduce.check_every_steps
    if parts.reduce_state is not None and every and course.batch % every == 0:
        require_no_drift(parts.ranks, parts.reduce_state.topology.hosts, parts.model, course.step)


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
