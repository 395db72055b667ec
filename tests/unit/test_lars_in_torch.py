"""LARS as one of torch's optimizers: rates in tensors, checkpoints, copies, schedulers, closures, bad values."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from support.lars_reference import (
    DEVICES,
    SHAPES,
    all_equal,
    both_forms,
    both_variants,
    give,
    parameters,
    rates_up_and_down,
    run,
    set_to,
    tensors,
)
from torch import nn

from fourminutes.optim import LARS

in_numbers_and_tensors = pytest.mark.parametrize("rate_form", [float, torch.tensor], ids=["float", "tensor"])


def gradients_of(steps):
    return [tensors(SHAPES, 1 + step) for step in range(steps)]


def replayable(optimizer, device):
    """A call that takes a step; on a GPU the step is captured in a CUDA graph, after one that changes nothing."""
    if device == "cpu":
        return optimizer.step
    set_to(optimizer, 0.0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


@pytest.mark.parametrize("device", DEVICES)
@both_variants
def test_a_rate_in_a_tensor_is_followed_as_a_number_is(variant, device):
    options = {"weight_decay": 0.01, "variant": variant, "foreach": True}
    rates, gradients = rates_up_and_down(12), [tensors(SHAPES, 1 + step, device=device) for step in range(12)]
    by_number, by_tensor = parameters(device=device), parameters(device=device)
    run(LARS(by_number, lr=0.0, **options), by_number, gradients, rates)

    # Two groups share the tensor, and each has a last rate of its own.
    groups = [{"params": by_tensor[:2]}, {"params": by_tensor[2:]}]
    optimizer = LARS(groups, lr=torch.tensor(0.0, device=device), **options)
    give(by_tensor, [torch.zeros_like(weight) for weight in by_tensor])
    step = replayable(optimizer, device)
    for given, rate in zip(gradients, rates, strict=True):
        for weight, gradient in zip(by_tensor, given, strict=True):
            weight.grad.copy_(gradient)
        set_to(optimizer, rate)
        step()
    torch.testing.assert_close(by_tensor, by_number, rtol=1e-6, atol=1e-6)


@both_variants
def test_one_by_one_too_a_rate_may_be_a_tensor(variant):
    by_number, by_tensor = parameters(), parameters()
    for weights, rate_form in ((by_number, float), (by_tensor, torch.tensor)):
        optimizer = LARS(weights, lr=rate_form(0.0), variant=variant, foreach=False)
        run(optimizer, weights, gradients_of(12), rates_up_and_down(12))
    torch.testing.assert_close(by_tensor, by_number, rtol=1e-6, atol=1e-6)


@both_forms
def test_the_rate_may_turn_from_a_number_into_a_tensor_and_back(foreach):
    steady, turning = parameters(), parameters()
    run(LARS(steady, lr=0.0, variant="mlperf", foreach=foreach), steady, gradients_of(4), [0.1, 0.2, 0.4, 0.3])
    optimizer, gradients = LARS(turning, lr=0.0, variant="mlperf", foreach=foreach), iter(gradients_of(4))
    for rate_form, rates in ((float, [0.1]), (torch.tensor, [0.2, 0.4]), (float, [0.3])):
        optimizer.param_groups[0]["lr"] = rate_form(0.0)
        run(optimizer, turning, [next(gradients) for _ in rates], rates)
    torch.testing.assert_close(turning, steady, rtol=1e-6, atol=1e-6)


@in_numbers_and_tensors
@both_forms
@both_variants
def test_resumes_bit_for_bit(variant, foreach, rate_form):
    rates, gradients = rates_up_and_down(12), gradients_of(12)
    through, halted = parameters(), parameters()
    options = {"weight_decay": 1e-3, "variant": variant, "foreach": foreach}
    run(LARS(through, lr=rate_form(0.0), **options), through, gradients, rates)

    first = LARS(halted, lr=rate_form(0.0), **options)
    run(first, halted, gradients[:5], rates[:5])
    file = io.BytesIO()
    torch.save({"weights": [weight.detach() for weight in halted], "optimizer": first.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = [nn.Parameter(tensor) for tensor in saved["weights"]]
    second = LARS(resumed, lr=1.0)
    second.load_state_dict(saved["optimizer"])
    assert isinstance(second.param_groups[0]["lr"], type(rate_form(0.0)))
    run(second, resumed, gradients[5:], rates[5:])
    assert all_equal(through, resumed)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@in_numbers_and_tensors
def test_a_copy_goes_on_like_its_original(rate_form, copied):
    weights = parameters()
    optimizer = LARS(weights, lr=rate_form(0.0), weight_decay=1e-3, variant="mlperf")
    run(optimizer, weights, gradients_of(3), [0.1, 0.3, 0.2])
    twins, twin = copied((weights, optimizer))
    run(optimizer, weights, gradients_of(4), [0.4, 0.3, 0.2, 0.1])
    assert not all_equal(weights, twins)
    run(twin, twins, gradients_of(4), [0.4, 0.3, 0.2, 0.1])
    assert all_equal(weights, twins)


@in_numbers_and_tensors
@both_forms
@both_variants
def test_torchs_schedulers_drive_it(variant, foreach, rate_form):
    by_hand, scheduled = parameters(), parameters()
    options = {"weight_decay": 1e-3, "variant": variant, "foreach": foreach}
    factors = [0.0, 0.5, 1.0, 0.25, 0.125]
    optimizer = LARS(by_hand, lr=rate_form(0.0), **options)
    run(optimizer, by_hand, gradients_of(5), [2.0 * factor for factor in factors])

    optimizer = LARS(scheduled, lr=rate_form(2.0), **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [*factors, 0.0][step])
    for gradients in gradients_of(5):
        give(scheduled, gradients)
        optimizer.step()
        scheduler.step()
    assert all_equal(by_hand, scheduled)


@both_forms
def test_a_group_may_be_added_later_with_its_own_rate(foreach):
    first, later = parameters(shapes=[(3, 4), (3, 4)])
    start = later.detach().clone()
    optimizer = LARS([first], lr=0.1, foreach=foreach)
    optimizer.add_param_group({"params": [later], "lr": 0.5, "adapt": False})
    give([first, later], [torch.ones(3, 4)] * 2)
    optimizer.step()
    assert torch.equal(later, start - 0.5)
    optimizer.zero_grad()
    assert later.grad is None


def test_weights_without_a_gradient_stay_and_the_closure_is_called():
    used, unused = parameters(shapes=[(3, 4), (3, 4)])
    start = unused.detach().clone()
    optimizer = LARS([used, unused], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    before, after = optimizer.step(closure), closure()
    assert after < before
    assert torch.equal(unused, start)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", torch.tensor(-1.0)),
        ("lr", torch.tensor([0.1, 0.2])),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("trust_coefficient", 0.0),
        ("epsilon", -1.0),
        ("variant", "larc"),
    ],
)
def test_a_value_out_of_range_is_named(option, value):
    with pytest.raises(ValueError, match=option):
        LARS(parameters(), **({"lr": 0.1} | {option: value}))
    with pytest.raises(ValueError, match=option):
        LARS([{"params": parameters(), option: value}], lr=0.1)
