"""From the plan's optimizer block to an optimizer."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Optimizer

from fourminutes.errors import UserError
from fourminutes.optim.groups import parameter_groups
from fourminutes.optim.lars import LARS
from fourminutes.plan import OptimizerPlan


def build_optimizer(model: nn.Module, plan: OptimizerPlan) -> Optimizer:
    """The optimizer of `plan` over `model`'s trainable parameters, with rate 0 until `set_rate` gives it one.

    ``lars`` is `LARS`; ``sgd`` is torch's own, v ← μv + g + λw, w ← w − γ_t·v, or Nesterov's form of it. Both get the
    same parameter groups, so that a comparison of the two compares nothing else.

    Raises:
        UserError: Nesterov's form is asked of LARS, or without momentum.
    """
    _check_nesterov(plan)
    groups = parameter_groups(
        model, weight_decay=plan.weight_decay, no_decay=plan.no_decay, no_adaptation=plan.no_adaptation
    )
    if plan.kind == "sgd":
        # Torch's fused SGD reads a gradient in its parameter's memory order without looking whether it has that order;
        # the default form (a loop on the CPU, `_foreach` on a GPU) looks.
        return SGD(groups, lr=0.0, momentum=plan.momentum, nesterov=plan.nesterov)
    return LARS(
        groups,
        lr=0.0,
        momentum=plan.momentum,
        trust_coefficient=plan.trust_coefficient,
        epsilon=plan.epsilon,
        variant=plan.variant,
        decay_in_denominator=plan.decay_in_denominator,
        momentum_correction=plan.momentum_correction,
    )


def _check_nesterov(plan: OptimizerPlan) -> None:
    if plan.nesterov and plan.kind != "sgd":
        raise UserError(f"optimizer.nesterov: {plan.kind} has no such form; set it to false, or kind to sgd")
    if plan.nesterov and plan.momentum == 0:
        raise UserError("optimizer.nesterov: needs a momentum above 0; set optimizer.momentum, or nesterov to false")
