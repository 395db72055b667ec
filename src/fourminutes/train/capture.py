"""A training step as CUDA graphs: its kernels are recorded once and launched together ever after.

With few images a device, as in the 32 of arXiv:1807.11205 on 2,048 GPUs, a step's kernels take less time than a host
needs to launch them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD

from fourminutes.data.loader import Batch
from fourminutes.train.course import Course
from fourminutes.train.setup import Parts
from fourminutes.train.step import Outcome, batch_loss, copy_all_, flushed_at_epochs_end

_WARM_UPS = 3  # torch's own advice: after these, libraries have their workspaces and have chosen their kernels

Work = Callable[[], None]


class Recorder(Protocol):
    """Turns work on a device into something that repeats it."""

    def warm_up(self, work: Work) -> None:
        """Do `work` once, as it is recorded later."""

    def record(self, work: Work) -> Work:
        """What repeats `work`, on whatever lies in its tensors then. Called in the order of the repetitions."""


class CudaGraphs:
    """Records work as CUDA graphs, on one stream, which also warms it up: autograd remembers streams.

    The graphs of one recorder share a pool of memory, since nothing in it has to last from step to step. Another
    recorder has its own: torch refuses to record into a pool whose graphs are gone while a gradient still lies in it.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work) -> None:
        """Do `work` beside the usual stream, which cannot be recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Record the kernels of `work`, without running them."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the loader's, may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CapturedStep:
    """A `Stepper` of four recordings: forward, backward, check of the gradients, and update.

    Between the check and the update the host reads whether the gradients are finite, and loads the next batch while
    the update runs: one wait a step. All tensors that a recording reads or writes stay where they are from step to
    step: the batch, which is copied there, gradients, momentum, the rate, and the loss scale.

    Args:
        parts: of one process, with weights and optimizer as the run begins or goes on; what is recorded leaves them so.
        recorder: how to record; `CudaGraphs` on a GPU.
    """

    def __init__(self, parts: Parts, recorder: Recorder) -> None:
        self._parts = parts
        self._batch = _blank_batch(parts)
        self._loss, self._overflow = (torch.zeros(1, device=parts.device) for _ in range(2))
        self._sums = _fixed_gradients(parts) if parts.settings.micro_batches > 1 else []
        self._statistics = parts.running_statistics
        self._before = [buffer.clone() for buffer in self._statistics]
        _fix_optimizer(parts)
        works = (self._run_forward, self._run_backward, self._run_check, self._run_update)
        _warm_up(parts, works, recorder)
        self._batch_loss = torch.empty(())  # lets go of what autograd remembers of the warm-up
        self._forward, self._backward, self._check, self._update = (recorder.record(work) for work in works)

    def __call__(self, course: Course, batches: Iterator[Batch]) -> Outcome:
        """Take one step."""
        copy_all_(self._before, self._statistics)
        torch._foreach_zero_([self._loss, *self._sums])
        course.clock.lap("other")
        for _ in range(self._parts.settings.micro_batches):
            batch = next(batches)
            course.clock.lap("input_wait")
            self._batch.images.copy_(batch.images)
            self._batch.labels.copy_(batch.labels)
            self._forward()
            course.clock.lap("forward")
            self._backward()
            course.clock.lap("backward")
        flushed = flushed_at_epochs_end(self._parts, course)
        self._check()
        loss, overflow = torch.cat([self._loss, self._overflow]).tolist()
        if overflow:
            copy_all_(self._statistics, self._before)
        else:
            course.flushed = flushed
            self._update()
        return Outcome(loss, finite=not overflow)

    def _run_forward(self) -> None:
        self._batch_loss = batch_loss(self._parts, self._batch) / self._parts.settings.micro_batches
        self._loss.add_(self._batch_loss.detach())

    def _run_backward(self) -> None:
        if not self._sums:  # then the gradients are autograd's own, which a repetition writes anew where they are
            self._parts.optimizer.zero_grad(set_to_none=True)
        self._parts.loss_scale.scaled(self._batch_loss).backward()  # type: ignore[no-untyped-call]

    def _run_check(self) -> None:
        gradients = [weight.grad for weight in self._parts.weights if weight.grad is not None]
        self._overflow.copy_(self._parts.loss_scale.overflow_of_unscaled_(gradients))

    def _run_update(self) -> None:
        self._parts.optimizer.step()


def _blank_batch(parts: Parts) -> Batch:
    """Where every batch is copied to."""
    count, side = parts.settings.batch.per_device, parts.settings.model.image_px
    images = torch.zeros(count, 3, side, side, device=parts.device).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.zeros(count, dtype=torch.int64, device=parts.device))


def _fixed_gradients(parts: Parts) -> list[Tensor]:
    """The gradients of all weights, zero, to which the micro-batches' backward passes add where they are."""
    for weight in parts.weights:
        weight.grad = torch.zeros_like(weight)
    return [weight.grad for weight in parts.weights if weight.grad is not None]


def _fix_optimizer(parts: Parts) -> None:
    """Let the optimizer keep everything on the device and in place: its rate, and the momentum from the start on."""
    for group in parts.optimizer.param_groups:
        for name in {"lr", "previous_lr"} & group.keys():
            group[name] = torch.tensor(float(group[name]), device=parts.device)
        if isinstance(parts.optimizer, SGD):
            # Its only form that reads the rate on the device. It wants gradients in their weights' memory order, which
            # fixed ones have.
            group["fused"] = True
        for weight in group["params"]:
            state = parts.optimizer.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)


def _warm_up(parts: Parts, works: tuple[Work, ...], recorder: Recorder) -> None:
    """Do `works` a few times, and leave all that they change as it was."""
    groups = parts.optimizer.param_groups
    changed = [
        *parts.model.state_dict().values(),
        *(state["momentum_buffer"] for state in parts.optimizer.state.values()),
        *(group["previous_lr"] for group in groups if "previous_lr" in group),
    ]
    before = [tensor.clone() for tensor in changed]
    devices = [parts.device] if parts.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(_WARM_UPS):
            for work in works:
                recorder.warm_up(work)
    for tensor, kept in zip(changed, before, strict=True):
        tensor.copy_(kept)
