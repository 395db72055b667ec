"""Which parameters are decayed and which are adapted: two separate choices, made by the parameter's kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fourminutes.plan.run import ParameterKind

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)  # the first covers batch and instance norm, synchronized or not


def parameter_kind(owner: nn.Module, name: str) -> ParameterKind | Literal["weight"]:
    """The kind of the parameter `name` of the module that holds it.

    ``norm`` is any parameter of a normalization layer (its γ and its β), ``bias`` a parameter of that name elsewhere,
    ``weight`` everything else. The module's type decides, not the number of dimensions or a pattern in the name, which
    would miss a β called ``shift`` or catch a one-dimensional weight.
    """
    if isinstance(owner, _NORMS):
        return "norm"
    return "bias" if name == "bias" else "weight"


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_decay: tuple[ParameterKind, ...] = ("bias", "norm"),
    no_adaptation: tuple[ParameterKind, ...] = ("bias", "norm"),
) -> list[dict[str, Any]]:
    """Every trainable parameter of `model` exactly once, in groups for an optimizer.

    Args:
        model: any network; parameters that need no gradient are left out, shared ones are taken where first met.
        weight_decay: λ of the parameters that are decayed.
        no_decay: kinds with λ = 0. Leaving biases, γ and β undecayed is worth 1.3 points of top-1 accuracy to
            AlexNet at a batch of 64K in arXiv:1807.11205, table 2.
        no_adaptation: kinds whose trust ratio is 1 in LARS.

    Returns:
        Groups with ``params`` (in the model's order), ``weight_decay`` and ``adapt``; at most four of them, in the
        order in which the model first needs them. `torch.optim.SGD` carries ``adapt`` along and ignores it.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for kind, parameter in _trainable(model):
        decays, adapts = kind not in no_decay, kind not in no_adaptation
        empty = {"params": [], "weight_decay": weight_decay if decays else 0.0, "adapt": adapts}
        groups.setdefault((decays, adapts), empty)["params"].append(parameter)
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The kind and the parameter, each parameter once."""
    met: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in met:
                met.add(parameter)
                yield parameter_kind(module, name), parameter
