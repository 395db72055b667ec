"""One optimizer step: the gradient of a global batch, and the update where all of it is finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fourminutes.comm.whereabouts import HERE
from fourminutes.data.loader import Batch
from fourminutes.optim import flushed_share
from fourminutes.train.course import Course
from fourminutes.train.precision import stores_half
from fourminutes.train.setup import Parts


class Outcome(NamedTuple):
    """What a step came to.

    Attributes:
        loss: this rank's mean loss over its share of the global batch, in nats.
        finite: whether the averaged gradient held finite numbers alone, so that the weights were updated.
    """

    loss: float
    finite: bool


#: Takes one step with the rate that the optimizer has. Every rank has the same bits of the averaged gradient, so all
#: come to the same `finite`; where it is False, weights, momentum and running statistics are left as they were.
Stepper = Callable[[Course, Iterator[Batch]], Outcome]


def eager_step(parts: Parts, course: Course, batches: Iterator[Batch]) -> Outcome:
    """A step whose kernels the host launches one by one; with `parts`, a `Stepper`."""
    statistics = parts.running_statistics
    before = [torch.empty_like(buffer) for buffer in statistics]
    copy_all_(before, statistics)
    loss = accumulate_gradients(parts, course, batches)
    flushed = flushed_at_epochs_end(parts, course)
    HERE.begin("update")
    finite = parts.loss_scale.unscale_([weight.grad for weight in parts.weights if weight.grad is not None])
    if finite:
        course.flushed = flushed
        parts.optimizer.step()
    else:
        copy_all_(statistics, before)
    parts.optimizer.zero_grad(set_to_none=True)
    return Outcome(loss, finite)


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
        HERE.begin("input")
        batch = next(batches)
        HERE.begin("forward and backward pass")
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


def flushed_at_epochs_end(parts: Parts, course: Course) -> float | None:
    """On an epoch's last step, the share of the coming update that half precision will lose; else None.

    To be asked while the gradients still have the loss scale.
    """
    is_epochs_last = (course.batch + 1) % parts.steps_per_epoch == 0
    if not (stores_half(parts.settings.precision) and is_epochs_last):
        return None
    return flushed_share(parts.optimizer, loss_scale=parts.loss_scale.value)


def copy_all_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source to its target; there may be none, as of a network without batch norm."""
    if targets:
        torch._foreach_copy_(targets, sources)
