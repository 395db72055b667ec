"""Which parameters are decayed and adapted, and the optimizer that a plan asks for."""

from __future__ import annotations

import pytest
import torch
from support.lars_reference import distance, rates_up_and_down, run, tensors
from torch import nn

from fourminutes.errors import UserError
from fourminutes.models.alexnet import AlexNetBN
from fourminutes.models.resnet import resnet50
from fourminutes.optim import LARS, build_optimizer, parameter_groups
from fourminutes.plan import OptimizerPlan


class Mixed(nn.Module):
    """Every kind of parameter, one of them frozen and one shared."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.fc = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.fc.weight
        self.frozen = nn.Linear(4, 2).requires_grad_(False)


def by_name(model, groups):
    """What each parameter's group says: (decay, adapted)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[p], (group["weight_decay"], group["adapt"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("no_decay", [(), ("bias",), ("norm",), ("bias", "norm")])
@pytest.mark.parametrize("no_adaptation", [(), ("bias",), ("norm",), ("bias", "norm")])
def test_decay_and_adaptation_are_chosen_separately_by_kind(no_decay, no_adaptation):
    model = Mixed()
    groups = parameter_groups(model, weight_decay=0.1, no_decay=no_decay, no_adaptation=no_adaptation)
    kinds = {
        "scale": "weight", "conv.weight": "weight", "conv.bias": "bias", "norm.weight": "norm", "norm.bias": "norm",
        "fc.weight": "weight", "fc.bias": "bias",
    }  # fmt: skip
    expected = {name: (0.0 if kind in no_decay else 0.1, kind not in no_adaptation) for name, kind in kinds.items()}
    assert by_name(model, groups) == expected


@pytest.mark.parametrize(("network", "tensors_decayed", "undecayed"), [(resnet50, 54, 54_120), (AlexNetBN, 8, 13_320)])
def test_the_papers_groups_leave_biases_and_norms_undecayed(network, tensors_decayed, undecayed):
    with torch.device("meta"):  # shapes alone
        model = network(1000)
    decayed, rest = sorted(parameter_groups(model, weight_decay=1e-4), key=lambda group: -group["weight_decay"])
    assert rest["weight_decay"] == 0
    assert len(decayed["params"]) == tensors_decayed
    assert sum(parameter.numel() for parameter in rest["params"]) == undecayed


def test_groups_keep_the_models_order():
    model = Mixed()
    (weights, rest) = parameter_groups(model, weight_decay=0.1)
    order = [*model.parameters()]
    for group in (weights, rest):
        places = [next(i for i, p in enumerate(order) if p is parameter) for parameter in group["params"]]
        assert places == sorted(places)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_momentum_with_the_rate_outside(nesterov):
    layer = nn.Linear(6, 5)
    start, gradients = layer.weight.detach().double(), [tensors([(5, 6), (5,)], step) for step in range(10)]
    plan = OptimizerPlan(kind="sgd", momentum=0.8, weight_decay=0.02, nesterov=nesterov)
    run(build_optimizer(layer, plan), [layer.weight, layer.bias], gradients, rates_up_and_down(10))
    w, v = start, torch.zeros(5, 6, dtype=torch.float64)
    for (g, _), rate in zip(gradients, rates_up_and_down(10), strict=True):
        d = g.double() + 0.02 * w
        v = 0.8 * v + d
        w = w - rate * (d + 0.8 * v if nesterov else v)
    assert distance(layer.weight, w.numpy()) < 1e-6


def test_the_plans_values_reach_lars():
    plan = OptimizerPlan(
        variant="mlperf", trust_coefficient=0.01, epsilon=0.0, decay_in_denominator=False, momentum=0.95,
        momentum_correction=False, weight_decay=2e-4, no_decay=("norm",), no_adaptation=(),
    )  # fmt: skip
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), plan)
    assert isinstance(optimizer, LARS)
    assert [(group["weight_decay"], group["adapt"]) for group in optimizer.param_groups] == [(2e-4, True), (0.0, True)]
    for group in optimizer.param_groups:
        keys = ("variant", "trust_coefficient", "epsilon", "decay_in_denominator", "momentum", "momentum_correction")
        assert [group[key] for key in keys] == ["mlperf", 0.01, 0.0, False, 0.95, False]


@pytest.mark.parametrize("plan", [OptimizerPlan(nesterov=True), OptimizerPlan(kind="sgd", momentum=0.0, nesterov=True)])
def test_nesterov_where_it_has_no_meaning_is_refused(plan):
    with pytest.raises(UserError, match=r"optimizer\.nesterov"):
        build_optimizer(nn.Linear(2, 2), plan)


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_gradients_may_lie_in_another_memory_order_than_their_weights(kind):
    results = []
    for order in (torch.channels_last, torch.contiguous_format):
        layer = nn.Conv2d(96, 40, 3, bias=False)
        with torch.no_grad():
            layer.weight.copy_(tensors([layer.weight.shape], 0)[0])
        layer.to(memory_format=torch.channels_last)
        (gradient,) = tensors([layer.weight.shape], 1)
        optimizer = build_optimizer(layer, OptimizerPlan(kind=kind))
        run(optimizer, [layer.weight], [[gradient.to(memory_format=order)]] * 3, [0.1] * 3)
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
