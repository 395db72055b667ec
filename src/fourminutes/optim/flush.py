"""What an update loses to its weights' number format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fourminutes.optim.lars import LARS
from fourminutes.optim.update import trust_ratio


@torch.no_grad()
def flushed_share(optimizer: Optimizer, *, loss_scale: float = 1.0) -> float:
    """The share of the weights' steps that vanish when they are stored in the weights' own number format.

    A weight's step is what its gradient adds to its velocity: γ·r·(g + λw) in LARS, γ·(g + λw) in SGD, here reckoned
    in float64 from the weights and gradients as they are. Stored in float16, all up to 2^-25 becomes zero; LARS's steps
    are small, which is why arXiv:1807.11205 takes them in float32. A gradient that is stored after the loss scale S is
    taken out of it, g = (Sg) / S, vanishes likewise, and its step with it.

    Args:
        optimizer: a `LARS` or a `torch.optim.SGD`, asked after the backward pass and before ``step``.
        loss_scale: S, by which the gradients, as they are, still are to be divided.

    Returns:
        Of the weights whose gradient is not zero, the share, from 0 to 1, whose gradient or step is not zero and
        becomes zero in the weight's dtype. 0 where no gradient differs from zero.

    Raises:
        TypeError: the optimizer is of another kind.
    """
    if not isinstance(optimizer, LARS | SGD):
        raise TypeError(f"the steps of {type(optimizer).__name__} are not known, only those of LARS and SGD")
    flushed = driven = 0  # weights that lose their step, weights with a gradient
    for group in optimizer.param_groups:
        adapts = isinstance(optimizer, LARS) and group["adapt"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            gradient, has_gradient = weight.grad.double() / loss_scale, weight.grad != 0
            step = _step(weight.double(), gradient, group, adapts=adapts)
            vanishes = _vanishes(step, weight.dtype) | _vanishes(gradient, weight.grad.dtype)
            flushed += int((has_gradient & vanishes).sum())
            driven += int(has_gradient.sum())
    return flushed / driven if driven else 0.0


def _vanishes(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Where `values` are not zero, and are in `dtype`."""
    return (values != 0) & (values.to(dtype) == 0)


def _step(weight: Tensor, gradient: Tensor, group: dict[str, Any], *, adapts: bool) -> Tensor:
    """γ·r·(g + λw)."""
    ratio = trust_ratio(weight.norm().item(), gradient.norm().item(), group) if adapts else 1.0
    step: Tensor = float(group["lr"]) * ratio * (gradient + group["weight_decay"] * weight)
    return step
