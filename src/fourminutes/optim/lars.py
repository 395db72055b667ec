"""LARS, layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, arXiv:1708.03888), in the forms in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from fourminutes.optim.update import Variant, update_one_by_one, update_together


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

    Norms and updates are in the weights' own number format, which should be float32: in half precision many of the
    updates flush to zero (`fourminutes.optim.flushed_share` tells how many).

    Example:
        >>> from fourminutes.optim import LARS, parameter_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> optimizer = LARS(parameter_groups(model, weight_decay=5e-5), lr=2.0)

    Args:
        params: tensors, or groups of them, as for any torch optimizer. A group may have ``adapt=False`` and its own
            value of everything below; `fourminutes.optim.parameter_groups` makes such groups.
        lr: γ, the rate; change it in ``param_groups`` between the steps. A tensor of shape () on the weights' device is
            changed in place, and so reaches a step captured in a CUDA graph too.
        momentum: μ, at least 0 and below 1.
        weight_decay: λ, at least 0.
        trust_coefficient: η, above 0.
        epsilon: ε, at least 0; bounds r where the gradient all but vanishes. None is the variant's: 1e-9 for ``paper``,
            0 for ``mlperf``.
        variant: ``paper`` or ``mlperf``.
        decay_in_denominator: whether λ‖w‖ is in r's denominator.
        momentum_correction: ``mlperf``: whether v follows the rate.
        foreach: whether a group's tensors are updated together (few launches, no waiting for the device, one temporary
            copy of the gradients) or one by one (few passes over the memory); None takes the first for tensors that
            are all on one GPU and of one dtype, the second elsewhere.

    Raises:
        ValueError: one of the values is out of its range.
    """

    def __init__(  # noqa: PLR0913 - as many as the equations have
        self,
        params: ParamsT,
        lr: float | Tensor,
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
        lr = param_group.get("lr", self.defaults["lr"])
        # γ_{t−1}; kept in the group, so that it is saved and restored with the rest.
        param_group.setdefault("previous_lr", torch.zeros_like(lr) if isinstance(lr, Tensor) else 0.0)
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
        together = group["foreach"] if group["foreach"] is not None else _on_one_gpu(weights)
        (update_together if together else update_one_by_one)(weights, gradients, velocities, group)
        _remember_rate(group)

    def _velocity(self, weight: Tensor) -> Tensor:
        """`weight`'s v, zero before the first step; called as torch's SGD calls it."""
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _on_one_gpu(weights: list[Tensor]) -> bool:
    """Whether they are all on the same GPU and of the same dtype."""
    return weights[0].is_cuda and len({(weight.device, weight.dtype) for weight in weights}) == 1


def _remember_rate(group: dict[str, Any]) -> None:
    """This step's rate is the next one's γ_{t−1}; tensors are kept in place, where a captured step reads them."""
    rate, previous = group["lr"], group["previous_lr"]
    if isinstance(rate, Tensor) and isinstance(previous, Tensor):
        previous.copy_(rate)
    else:
        group["previous_lr"] = rate.clone() if isinstance(rate, Tensor) else rate


def _check(group: dict[str, Any]) -> None:
    if group["variant"] not in ("paper", "mlperf"):
        raise ValueError(f"variant is {group['variant']!r}; there are 'paper' and 'mlperf'")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum is {group['momentum']}; it must be at least 0 and below 1")
    if not group["trust_coefficient"] > 0:
        raise ValueError(f"trust_coefficient is {group['trust_coefficient']}; it must be above 0")
    if isinstance(group["lr"], Tensor) and group["lr"].dim() > 0:
        raise ValueError(f"lr has the shape {tuple(group['lr'].shape)}; a tensor of it must have the shape ()")
    for name in ("lr", "weight_decay", "epsilon"):
        if group[name] is not None and not group[name] >= 0:
            raise ValueError(f"{name} is {group[name]}; it must not be negative")
