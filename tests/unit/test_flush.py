"""The share of steps that vanish in the weights' own number format, on cases counted by hand and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.lars_reference import in_numpy, parameters, tensors
from torch import nn
from torch.optim import SGD, Adam

from fourminutes.optim import LARS, flushed_share


def in_float16(weight, gradient):
    parameter = nn.Parameter(torch.tensor(weight, dtype=torch.float16))
    parameter.grad = torch.tensor(gradient, dtype=torch.float16)
    return parameter


# At a rate of 2^-10 and without decay: 2^-14 stays above float16's smallest number, 2^-24, and so does 2^-24 itself;
# 2^-25 is halfway to zero and becomes it. A gradient of zero doesn't count.
GRADIENTS = [0.0, 0.0, 2.0**-4, 2.0**-14, -(2.0**-14), 2.0**-15, -(2.0**-15), 2.0**-24]


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_in_float16_steps_up_to_half_its_smallest_number_vanish(kind):
    weight = in_float16([1.0] * 8, GRADIENTS)
    groups = [{"params": [weight], "adapt": False}]
    optimizer = LARS(groups, lr=2.0**-10) if kind == "lars" else SGD(groups, lr=2.0**-10)
    assert flushed_share(optimizer) == 3 / 6


def test_a_gradient_that_vanishes_when_the_loss_scale_is_taken_out_loses_its_step():
    """2^-15 / 2^11 is 2^-26 and becomes zero, 2^-13 / 2^11 is 2^-24 and stays."""
    weight = in_float16([1.0] * 3, [2.0**-15, 2.0**-13, 0.0])
    assert flushed_share(SGD([weight], lr=1.0)) == 0.0
    assert flushed_share(SGD([weight], lr=1.0), loss_scale=2.0**11) == 0.5
    weight.data = weight.data.float()
    weight.grad = torch.tensor([2.0**-15, 2.0**-13, 0.0])
    assert flushed_share(SGD([weight], lr=1.0), loss_scale=2.0**11) == 0.0


def test_decay_can_lift_a_step_above_the_limit():
    weight = in_float16([2.0**-5, 0.0], [2.0**-24, 2.0**-24])
    assert flushed_share(SGD([weight], lr=0.5, weight_decay=0.0)) == 1.0
    assert flushed_share(SGD([weight], lr=0.5, weight_decay=2.0**-4)) == 0.5


def test_a_weight_without_a_gradient_loses_nothing_though_its_decay_vanishes():
    weight = in_float16([2.0**-10, 2.0**-10], [0.0, 1.0])
    assert flushed_share(SGD([weight], lr=2.0**-10, weight_decay=2.0**-10)) == 0.0


def test_the_trust_ratio_is_part_of_the_step():
    (w,), (g,) = tensors([(40, 50)], 0), tensors([(40, 50)], 1)
    weight = in_float16(w.tolist(), g.tolist())
    optimizer = LARS([weight], lr=1e-3, weight_decay=1e-2, trust_coefficient=1e-3, epsilon=0.0)
    w, g = in_numpy(weight), in_numpy(weight.grad)
    ratio = 1e-3 * np.linalg.norm(w) / (np.linalg.norm(g) + 1e-2 * np.linalg.norm(w))
    expected = np.mean(np.abs(1e-3 * ratio * (g + 1e-2 * w)) <= 2.0**-25)
    assert 0.01 < expected < 0.99
    assert flushed_share(optimizer) == expected


def test_groups_and_dtypes_are_counted_together():
    half = in_float16([1.0, 1.0], [2.0**-15, 1.0])
    single = nn.Parameter(torch.ones(2))
    single.grad = torch.tensor([2.0**-15, 1.0])
    idle = nn.Parameter(torch.ones(5))
    optimizer = SGD([{"params": [half]}, {"params": [single, idle]}], lr=2.0**-10)
    assert flushed_share(optimizer) == 1 / 4


def test_in_float32_none_vanish():
    weights = parameters()
    for weight, gradient in zip(weights, tensors([weight.shape for weight in weights], 1, scale=1e-6), strict=True):
        weight.grad = gradient
    assert flushed_share(LARS(weights, lr=1e-3, weight_decay=1e-4)) == 0.0


def test_without_a_rate_or_a_gradient_nothing_is_lost():
    weight = in_float16([1.0], [1.0])
    assert flushed_share(LARS([weight], lr=0.0)) == 0.0
    assert flushed_share(LARS([nn.Parameter(torch.ones(3))], lr=1.0)) == 0.0


def test_it_changes_nothing():
    weight = in_float16([1.0, 2.0], [0.5, 2.0**-24])
    optimizer = LARS([weight], lr=0.1)
    flushed_share(optimizer)
    assert weight.tolist() == [1.0, 2.0]
    assert weight.grad.tolist() == [0.5, 2.0**-24]
    assert not optimizer.state


def test_other_optimizers_are_refused():
    with pytest.raises(TypeError, match="Adam"):
        flushed_share(Adam([nn.Parameter(torch.ones(3))]))
