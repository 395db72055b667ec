"""One step of LARS over the tensors of a group, in a form for CPUs and one for GPUs; the equations are those of `LARS`.

Both take lists of equal length, weights, gradients and velocities of pairwise equal shapes, and a group of the
optimizer with the numbers of the equations. They change weights and velocities in place.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Variant = Literal["paper", "mlperf"]
EPSILON: dict[Variant, float] = {"paper": 1e-9, "mlperf": 0.0}

_ONE_THREAD = 32_768  # up to so many numbers torch works on one thread, but for its fused kernels
_MEMORY_ORDERS = (torch.contiguous_format, torch.channels_last)
_Norm = TypeVar("_Norm", float, Tensor)


def update_one_by_one(
    weights: list[Tensor], gradients: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
) -> None:
    """The update tensor by tensor: nothing is allocated, and a tensor's norm has just brought it into the cache."""
    lr, momentum, decay = float(group["lr"]), float(_momentum(group)), group["weight_decay"]
    for w, g, v in zip(weights, gradients, velocities, strict=True):
        rate = lr * trust_ratio(_norm(w).item(), _norm(g).item(), group) if group["adapt"] else lr
        update = _update_in_one_pass if _suits_one_pass((w, g, v), momentum, rate) else _update_in_four_passes
        update(w, g, v, momentum, rate, decay)


def update_together(
    weights: list[Tensor], gradients: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
) -> None:
    """The update of all tensors at once: nothing waits for the device, and a CUDA graph can capture it.

    The tensors must be of one device and dtype. Launches are few but for the trust ratios: torch has no single kernel
    that scales many tensors by as many numbers of the device, so each adapted tensor takes one.
    """
    steps = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    if group["adapt"]:
        norms = torch.stack(torch._foreach_norm(weights + gradients))
        ratios = _trust_ratios(norms[: len(weights)], norms[len(weights) :], group)
        torch._foreach_mul_(steps, (ratios * group["lr"]).unbind())
    else:
        torch._foreach_mul_(steps, group["lr"])
    torch._foreach_mul_(velocities, _momentum(group))
    torch._foreach_add_(velocities, steps)
    torch._foreach_sub_(weights, velocities)


def trust_ratio(weight_norm: float, gradient_norm: float, group: dict[str, Any]) -> float:
    """The trust ratio of an adapted tensor, from its norms."""
    return _ratio(weight_norm, gradient_norm, group) if weight_norm > 0 and gradient_norm > 0 else 1.0


def _trust_ratios(weight_norms: Tensor, gradient_norms: Tensor, group: dict[str, Any]) -> Tensor:
    """The trust ratio of every tensor, from the tensors' norms; all of shape (tensors,)."""
    ratios = _ratio(weight_norms, gradient_norms, group)
    return torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)


def _ratio(weight_norm: _Norm, gradient_norm: _Norm, group: dict[str, Any]) -> _Norm:
    """η‖w‖ / (‖g‖ + λ‖w‖ + ε), of numbers or of tensors of them."""
    decay = group["weight_decay"] if group["decay_in_denominator"] else 0.0
    epsilon = EPSILON[group["variant"]] if group["epsilon"] is None else group["epsilon"]
    ratio: _Norm = group["trust_coefficient"] * weight_norm / (gradient_norm + decay * weight_norm + epsilon)
    return ratio


def _momentum(group: dict[str, Any]) -> float | Tensor:
    """μ_t of this step; a tensor of shape () where γ_{t−1} is one."""
    momentum: float = group["momentum"]
    previous: float | Tensor = group["previous_lr"]
    if group["variant"] != "mlperf" or not group["momentum_correction"]:
        return momentum
    if isinstance(previous, Tensor):
        return torch.where(previous > 0, momentum * group["lr"] / previous, momentum)
    return momentum * float(group["lr"]) / previous if previous > 0 else momentum


def _norm(tensor: Tensor) -> Tensor:
    """‖tensor‖, of shape (): of its rows first, then of the rows' norms.

    Torch's CPU kernel adds up all squares in few float32 sums. Over the 38 million weights of AlexNet's fc6 that loses
    2 parts in a thousand; row by row it loses 1 in ten million and takes no longer.
    """
    rows: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim()))) if tensor.dim() > 1 else tensor
    norm: Tensor = torch.linalg.vector_norm(rows)
    return norm


def _suits_one_pass(tensors: tuple[Tensor, ...], momentum: float, rate: float) -> bool:
    """Whether `_update_in_one_pass` can take these tensors and numbers, and is worth it.

    Torch's kernel walks through the memory of all three tensors without looking at their strides, so these must agree
    and leave no gaps; it keeps no velocity where the momentum is 0; and it is told 1 − rate, from which a rate below
    some 1e-9 can't be had back to float32's precision. It calls all threads even for the smallest tensor, which takes
    longer than four passes through the cache. Its forms for other dtypes round otherwise, and a version of torch may
    be without it.
    """
    return (
        hasattr(torch, "_fused_sgd_")
        and tensors[0].numel() >= _ONE_THREAD
        and momentum != 0
        and math.isclose(1 - (1 - rate), rate, rel_tol=2**-25)
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
        and any(all(tensor.is_contiguous(memory_format=order) for tensor in tensors) for order in _MEMORY_ORDERS)
    )


def _update_in_one_pass(w: Tensor, g: Tensor, v: Tensor, momentum: float, rate: float, decay: float) -> None:
    """The update by torch's kernel for SGD, v ← μv + (1 − dampening)·(g + λw) and w ← w − lr·v."""
    torch._fused_sgd_(
        [w], [g], [v], weight_decay=decay, momentum=momentum, lr=1.0, dampening=1 - rate,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


def _update_in_four_passes(w: Tensor, g: Tensor, v: Tensor, momentum: float, rate: float, decay: float) -> None:
    """The update for any dtype, device and memory order."""
    v.mul_(momentum).add_(g, alpha=rate).add_(w, alpha=rate * decay)
    w.sub_(v)
