"""LARS, layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, arXiv:1708.03888), in the forms in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Variant = Literal["paper", "mlperf"]
EPSILON: dict[Variant, float] = {"paper": 1e-9, "mlperf": 0.0}


class LARS(Optimizer):
    r"""Momentum SGD in which every tensor's step is scaled to the tensor's own size.

    With w a tensor of weights, g its gradient (averaged over the batch, unscaled, before decay), γ_t the rate of this
    step, λ the decay, μ the momentum, η the trust coefficient and ε the epsilon::

        r = η‖w‖ / (‖g‖ + λ‖w‖ + ε)        the trust ratio; r = 1 where ‖w‖ or ‖g‖ is zero, or adapt is False
        v ← μ_t·v + γ_t·r·(g + λw)
        w ← w − v

    Published codes silently differ in μ_t and in r's denominator, and agree in name only. The variants here:

    ``paper``
        μ_t = μ: the rate is inside the momentum, and a step keeps the rate it was taken with. So does the Caffe code
        behind the 32K recipe that arXiv:1807.11205 builds on; ``decay_in_denominator=False`` is its later form, with
        r = η‖w‖ / (‖g‖ + ε).
    ``mlperf``
        μ_t = μ·γ_t/γ_{t−1}, or μ where γ_{t−1} = 0, as in NVIDIA's MLPerf code, and ε = 0: all of v follows the
        rate. This is momentum with the rate outside: v = γ_t·u with u ← μu + r·(g + λw).
        ``momentum_correction=False`` is Google's form, with μ_t = μ.

    Norms and updates are in the weights' own number format, which should be float32: in half precision η‖w‖ and many
    of the updates flush to zero.

    Example:
        >>> from fourminutes.optim import LARS, parameter_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> optimizer = LARS(parameter_groups(model, weight_decay=5e-5), lr=2.0)

    Args:
        params: tensors, or groups of them, as for any torch optimizer. A group may have ``adapt=False`` and its own
            value of everything below; `fourminutes.optim.parameter_groups` makes such groups.
        lr: γ, the rate; change it in ``param_groups`` between the steps.
        momentum: μ, at least 0 and below 1.
        weight_decay: λ, at least 0.
        trust_coefficient: η, above 0.
        epsilon: ε, at least 0; bounds r where the gradient all but vanishes. None is the variant's: 1e-9 for ``paper``,
            0 for ``mlperf``.
        variant: ``paper`` or ``mlperf``.
        decay_in_denominator: whether λ‖w‖ is in r's denominator.
        momentum_correction: ``mlperf``: whether v follows the rate.
        foreach: whether a group's tensors are updated together (few launches, one temporary copy of the gradients) or
            one by one (few passes over the memory); None takes the first on a GPU, the second elsewhere.

    Raises:
        ValueError: one of the values is out of its range.
    """

    def __init__(  # noqa: PLR0913 - as many as the equations have
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        epsilon: float | None = None,
        variant: Variant = "paper",
        decay_in_denominator: bool = True,
        momentum_correction: bool = True,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "previous_lr": 0.0,  # γ_{t−1}; kept in the group, so that it is saved and restored with the rest
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "epsilon": epsilon,
            "variant": variant,
            "decay_in_denominator": decay_in_denominator,
            "momentum_correction": momentum_correction,
            "adapt": True,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: one of the group's values is out of its range.
        """
        _check(self.defaults | param_group)
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every weight that has a gradient; return the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        velocities = [self._velocity(weight) for weight in weights]
        together = group["foreach"] if group["foreach"] is not None else weights[0].is_cuda
        (_update_together if together else _update_one_by_one)(weights, gradients, velocities, group)
        group["previous_lr"] = group["lr"]

    def _velocity(self, weight: Tensor) -> Tensor:
        """`weight`'s v, zero before the first step; called as torch's SGD calls it."""
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _update_one_by_one(
    weights: list[Tensor], gradients: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
) -> None:
    """The update with the ratios as numbers: nothing is allocated, and a tensor stays in the cache over its update."""
    momentum, decay = _momentum(group), group["weight_decay"]
    ratios = [1.0] * len(weights)
    if group["adapt"]:
        weight_norms, gradient_norms = (
            torch.stack([_norm(each) for each in tensors]) for tensors in (weights, gradients)
        )
        ratios = _trust_ratios(weight_norms, gradient_norms, group).tolist()
    for w, g, v, ratio in zip(weights, gradients, velocities, ratios, strict=True):
        rate = group["lr"] * ratio
        v.mul_(momentum).add_(g, alpha=rate).add_(w, alpha=rate * decay)
        w.sub_(v)


def _update_together(
    weights: list[Tensor], gradients: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
) -> None:
    """The update with the ratios as tensors: nothing waits for the device."""
    steps = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    if group["adapt"]:
        weight_norms, gradient_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
        ratios = _trust_ratios(weight_norms, gradient_norms, group)
        torch._foreach_mul_(steps, (ratios * group["lr"]).unbind())
    else:
        torch._foreach_mul_(steps, group["lr"])
    torch._foreach_mul_(velocities, _momentum(group))
    torch._foreach_add_(velocities, steps)
    torch._foreach_sub_(weights, velocities)


def _trust_ratios(weight_norms: Tensor, gradient_norms: Tensor, group: dict[str, Any]) -> Tensor:
    """The trust ratio of every tensor of a group, from the tensors' norms; all of shape (tensors,)."""
    decay = group["weight_decay"] if group["decay_in_denominator"] else 0.0
    epsilon = EPSILON[group["variant"]] if group["epsilon"] is None else group["epsilon"]
    denominators = gradient_norms + decay * weight_norms + epsilon
    ratios = group["trust_coefficient"] * weight_norms / denominators
    return torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)


def _norm(tensor: Tensor) -> Tensor:
    """‖tensor‖, of shape (): of its rows first, then of the rows' norms.

    Torch's CPU kernel adds up all squares in few float32 sums. Over the 38 million weights of AlexNet's fc6 that loses
    2 parts in a thousand; row by row it loses 1 in ten million and takes no longer.
    """
    rows: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim()))) if tensor.dim() > 1 else tensor
    norm: Tensor = torch.linalg.vector_norm(rows)
    return norm


def _momentum(group: dict[str, Any]) -> float:
    """μ_t of this step."""
    momentum: float = group["momentum"]
    follows_rate = group["variant"] == "mlperf" and group["momentum_correction"]
    if follows_rate and group["previous_lr"] > 0:
        return momentum * float(group["lr"]) / float(group["previous_lr"])
    return momentum


def _check(group: dict[str, Any]) -> None:
    if group["variant"] not in ("paper", "mlperf"):
        raise ValueError(f"variant is {group['variant']!r}; there are 'paper' and 'mlperf'")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum is {group['momentum']}; it must be at least 0 and below 1")
    if not group["trust_coefficient"] > 0:
        raise ValueError(f"trust_coefficient is {group['trust_coefficient']}; it must be above 0")
    for name in ("lr", "weight_decay", "epsilon"):
        if group[name] is not None and not group[name] >= 0:
            raise ValueError(f"{name} is {group[name]}; it must not be negative")
