"""LARS against its equations, written out slowly in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lars_reference import (
    DEVICES,
    SHAPES,
    all_equal,
    both_forms,
    both_variants,
    distance,
    in_numpy,
    parameters,
    rates_up_and_down,
    reference,
    run,
    tensors,
)
from torch import nn

from fourminutes.optim import LARS

LARGE = (256, 130)  # large enough for the update in one pass


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(("adapt", "in_denominator"), [(True, True), (True, False), (False, True)])
@both_forms
@both_variants
def test_follows_its_equations_over_50_steps(variant, foreach, adapt, in_denominator, decay, device):
    weights, rates = parameters(device=device), rates_up_and_down(50)
    with torch.no_grad():
        weights[1].zero_()  # so that its norm is 0 until the first step with a rate
    gradients = [tensors(SHAPES, 1 + step, scale=10.0 ** (step % 3), device=device) for step in range(50)]
    for step in range(3, 50, 7):
        gradients[step] = [torch.zeros_like(gradient) for gradient in gradients[step]]
    start = [in_numpy(weight) for weight in weights]
    group = {"params": weights, "adapt": adapt, "weight_decay": decay, "decay_in_denominator": in_denominator}
    optimizer = LARS(
        [group], lr=0.0, momentum=0.9, trust_coefficient=0.02, epsilon=1e-3, variant=variant, foreach=foreach
    )
    run(optimizer, weights, gradients, rates)
    for index, weight in enumerate(weights):
        series = [in_numpy(step[index]) for step in gradients]
        w, v = reference(
            start[index], series, rates, variant=variant, mu=0.9, decay=decay, eta=0.02, eps=1e-3, adapt=adapt,
            in_denominator=in_denominator,
        )  # fmt: skip
        assert distance(weight, w) < 1e-5
        assert distance(optimizer.state[weight]["momentum_buffer"], v) < 1e-5


@settings(max_examples=100, deadline=None)
@given(
    shape=st.sampled_from([(4, 6), (256, 130)]),
    variant=st.sampled_from(["paper", "mlperf"]),
    foreach=st.booleans(),
    adapt=st.booleans(),
    mu=st.floats(0, 0.97),
    decay=st.floats(0, 0.1),
    eta=st.floats(1e-4, 0.1),
    rates=st.lists(st.one_of(st.just(0.0), st.floats(0.05, 2)), min_size=1, max_size=12),
    weight_exponent=st.integers(-4, 2),
    gradient_exponent=st.integers(-6, 3),
    seed=st.integers(0, 2**16),
)
def test_follows_its_equations_for_any_setting(
    shape, variant, foreach, adapt, mu, decay, eta, rates, weight_exponent, gradient_exponent, seed
):
    # Without the trust ratio the step's size is the gradient's, and with large ones nothing is left of the weights.
    gradient_exponent = gradient_exponent if adapt else min(gradient_exponent, weight_exponent)
    (start,) = tensors([shape], seed, scale=10.0**weight_exponent)
    gradients = [tensors([shape], seed + 1 + step, scale=10.0**gradient_exponent) for step in range(len(rates))]
    weight = nn.Parameter(start.clone())
    group = {"params": [weight], "adapt": adapt, "weight_decay": decay}
    optimizer = LARS(
        [group], lr=0.0, momentum=mu, trust_coefficient=eta, epsilon=1e-9, variant=variant, foreach=foreach
    )
    run(optimizer, [weight], gradients, rates)
    series = [step[0].numpy() for step in gradients]
    w, v = reference(start.numpy(), series, rates, variant=variant, mu=mu, decay=decay, eta=eta, eps=1e-9, adapt=adapt)
    velocity = optimizer.state[weight]["momentum_buffer"].double().numpy()
    scale = max(np.abs(w).max(), np.abs(start.numpy()).max())
    assert np.abs(weight.detach().double().numpy() - w).max() < 1e-5 * scale
    assert np.abs(velocity - v).max() < 1e-5 * scale


@both_forms
def test_mlperfs_correction_puts_the_rate_outside_the_momentum(foreach):
    (start,) = tensors([(5, 7)], 0)
    weight = nn.Parameter(start.double())
    gradients = [[tensor.double() for tensor in tensors([(5, 7)], 1 + step)] for step in range(20)]
    rates = [0.0, *(0.3 * (step + 1) if step < 8 else 5.0 / step for step in range(19))]
    optimizer = LARS(
        [weight], lr=0.0, weight_decay=0.01, trust_coefficient=0.05, epsilon=0.0, variant="mlperf", foreach=foreach
    )
    run(optimizer, [weight], gradients, rates)
    w, u = start.double(), torch.zeros(5, 7, dtype=torch.float64)
    for (g,), rate in zip(gradients, rates, strict=True):
        r = 0.05 * w.norm() / (g.norm() + 0.01 * w.norm())
        # The first step has rate 0: there v = γu is 0 and so forgets u, in MLPerf's form as in ours.
        u = 0.9 * u + r * (g + 0.01 * w) if rate > 0 else u
        w = w - rate * u
    assert distance(weight, w.numpy()) < 1e-13


def test_without_its_correction_mlperfs_form_is_the_papers():
    results = []
    for options in ({"variant": "paper"}, {"variant": "mlperf", "momentum_correction": False}, {"variant": "mlperf"}):
        weights = parameters()
        optimizer = LARS(weights, lr=0.0, weight_decay=1e-3, **options)
        run(optimizer, weights, [tensors(SHAPES, step) for step in range(8)], rates_up_and_down(8))
        results.append(weights)
    paper, uncorrected, corrected = results
    assert all_equal(paper, uncorrected)
    assert not any(torch.equal(a, b) for a, b in zip(paper, corrected, strict=True))


@both_forms
def test_zero_weights_take_the_plain_step(foreach):
    weight, (gradient,) = nn.Parameter(torch.zeros(3, 4)), tensors([(3, 4)], 1)
    run(LARS([weight], lr=0.0, weight_decay=0.1, foreach=foreach), [weight], [[gradient]], [0.5])
    assert torch.equal(weight, -0.5 * gradient)


@both_forms
def test_a_zero_gradient_leaves_the_plain_decay(foreach):
    (weight,) = parameters(shapes=[(3, 4)])
    start = weight.detach().clone()
    run(LARS([weight], lr=0.0, weight_decay=0.1, foreach=foreach), [weight], [[torch.zeros(3, 4)]], [0.5])
    torch.testing.assert_close(weight.detach(), start * (1 - 0.5 * 0.1))


@both_forms
@pytest.mark.parametrize(("variant", "epsilon"), [("paper", 1e-9), ("mlperf", 0.0)])
def test_left_alone_epsilon_is_the_variants(variant, epsilon, foreach):
    results = []
    for options in ({}, {"epsilon": epsilon}, {"epsilon": 1e-9 - epsilon}):
        weights = parameters()
        optimizer = LARS(weights, lr=0.0, variant=variant, foreach=foreach, **options)
        run(optimizer, weights, [tensors(SHAPES, 1, scale=1e-9)], [1.0])
        results.append(weights)
    left_alone, same, other = results
    assert all_equal(left_alone, same)
    assert not any(torch.equal(a, b) for a, b in zip(left_alone, other, strict=True))


@both_forms
def test_the_first_steps_length_is_rate_times_eta_times_the_weights_norm(foreach):
    weights = parameters()
    norms = [weight.norm().item() for weight in weights]
    optimizer = LARS(weights, lr=0.0, trust_coefficient=0.01, epsilon=0.0, foreach=foreach)
    run(optimizer, weights, [tensors(SHAPES, 1, scale=1e4)], [2.0])
    lengths = [optimizer.state[weight]["momentum_buffer"].norm().item() for weight in weights]
    assert lengths == pytest.approx([2.0 * 0.01 * norm for norm in norms], rel=1e-6)


@both_forms
def test_without_decay_the_gradients_scale_plays_no_part(foreach):
    results = []
    for scale in (1.0, 2.0**-10, 2.0**12):  # powers of two, so that not even the rounding differs
        weights = parameters()
        optimizer = LARS(weights, lr=0.0, epsilon=0.0, foreach=foreach)
        run(optimizer, weights, [tensors(SHAPES, step, scale=scale) for step in range(5)], rates_up_and_down(5))
        results.append(weights)
    assert all_equal(results[0], results[1])
    assert all_equal(results[0], results[2])


def test_the_norm_of_a_large_matrix_keeps_its_digits():
    (weight,) = tensors([(2048, 4096)], 0, scale=0.005)
    gradient = torch.zeros_like(weight)
    gradient[0, 0] = 2.0  # its norm is exact, so that nothing hides an error of the weights' norm
    parameter, expected = nn.Parameter(weight.clone()), 0.001 * weight.double().norm().item()
    optimizer = LARS([parameter], lr=0.0, epsilon=0.0)
    run(optimizer, [parameter], [[gradient]], [1.0])
    assert optimizer.state[parameter]["momentum_buffer"][0, 0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
@both_forms
@both_variants
def test_takes_weights_of_any_number_format(variant, foreach, dtype, tolerance):
    (start,), rates = tensors([LARGE], 0), [0.0, 0.5, 1.0, 0.7, 0.2]
    gradients = [[gradient.to(dtype)] for gradient in tensors([LARGE] * 5, 1)]
    weight = nn.Parameter(start.to(dtype))
    start, series = in_numpy(weight), [in_numpy(gradient) for (gradient,) in gradients]
    optimizer = LARS(
        [weight], lr=0.0, weight_decay=0.01, trust_coefficient=0.1, epsilon=0.0, variant=variant, foreach=foreach
    )
    run(optimizer, [weight], gradients, rates)
    w, v = reference(start, series, rates, variant=variant, mu=0.9, decay=0.01, eta=0.1, eps=0.0)
    assert weight.dtype == optimizer.state[weight]["momentum_buffer"].dtype == dtype
    assert distance(weight, w) < tolerance
    assert distance(optimizer.state[weight]["momentum_buffer"], v) < tolerance


@pytest.mark.parametrize("rate", [3.0, 1.0, 1e-3, 1e-7, 4e-9, 1e-9, 1e-12, 1e-20, 1e-30])
def test_the_smallest_rates_keep_their_digits(rate):
    (gradient,) = tensors([LARGE], 1)
    weight = nn.Parameter(torch.zeros(LARGE))
    optimizer = LARS([{"params": [weight], "adapt": False}], lr=0.0)
    run(optimizer, [weight], [[gradient]], [rate])
    velocity = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(velocity.double(), rate * gradient.double(), rtol=2e-7, atol=0.0)
    assert torch.equal(weight, -velocity)


@both_variants
def test_a_torch_without_its_fused_kernel_takes_the_same_steps(variant, monkeypatch):
    results = []
    for _ in range(2):
        weights = parameters()
        optimizer = LARS(weights, lr=0.0, weight_decay=0.01, variant=variant)
        run(optimizer, weights, [tensors(SHAPES, 1 + step) for step in range(6)], rates_up_and_down(6))
        results.append(weights)
        monkeypatch.delattr(torch, "_fused_sgd_", raising=False)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("gradient_order", ORDERS)
@pytest.mark.parametrize("weight_order", ORDERS)
def test_the_memory_order_plays_no_part(weight_order, gradient_order):
    shape, rates = (96, 40, 3, 3), [0.1, 0.3, 0.2]
    (weight,), gradients = tensors([shape], 0), tensors([shape] * 3, 1)
    start, series = in_numpy(weight), [in_numpy(gradient) for gradient in gradients]
    weight = nn.Parameter(weight.to(memory_format=ORDERS[weight_order]))
    optimizer = LARS([weight], lr=0.0, weight_decay=0.01, trust_coefficient=1.0)
    for gradient, rate in zip(gradients, rates, strict=True):
        weight.grad = gradient.to(memory_format=ORDERS[gradient_order])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    w, _ = reference(start, series, rates, variant="paper", mu=0.9, decay=0.01, eta=1.0, eps=1e-9)
    assert distance(weight, w) < 1e-6


def test_weights_and_gradients_may_be_views_with_gaps():
    around, (gradient,) = torch.ones(256, 300), tensors([LARGE], 1)
    weight = nn.Parameter(around[:, 20:280:2])
    weight.grad = gradient[:1].expand(LARGE)  # one row for all
    optimizer = LARS([{"params": [weight], "adapt": False}], lr=0.5)
    optimizer.step()
    assert torch.equal(weight, 1 - 0.5 * gradient[:1].expand(LARGE))
    assert around[:, 21:280:2].eq(1).all()
    assert around[:, :20].eq(1).all()
