"""LARS against its equations, written out slowly in float64, and the groups it works on."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.models.alexnet import AlexNetBN
from fourminutes.models.resnet import resnet50
from fourminutes.optim import LARS, build_optimizer, parameter_groups
from fourminutes.plan import ModelPlan, OptimizerPlan

SHAPES = ((8, 4, 3, 3), (5, 7), (6,))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
both_forms = pytest.mark.parametrize("foreach", [False, True])
both_variants = pytest.mark.parametrize("variant", ["paper", "mlperf"])


def reference(w, gradients, rates, *, variant, mu, decay, eta, eps, adapt=True, in_denominator=True):
    """The update's equations over all steps, in float64: the weights and the velocity at the end."""
    w, v, last = w.astype(np.float64), np.zeros(w.shape), 0.0
    for g, rate in zip(gradients, rates, strict=True):
        w_norm, g_norm = math.sqrt((w**2).sum()), math.sqrt((g.astype(np.float64) ** 2).sum())
        r = 1.0
        if adapt and w_norm > 0 and g_norm > 0:
            r = eta * w_norm / (g_norm + (decay * w_norm if in_denominator else 0.0) + eps)
        mu_t = mu * rate / last if variant == "mlperf" and last > 0 else mu
        v = mu_t * v + rate * r * (g + decay * w)
        w = w - v
        last = rate
    return w, v


def run(optimizer, weights, gradients_by_step, rates):
    for gradients, rate in zip(gradients_by_step, rates, strict=True):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def tensors(shapes, seed, scale=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(device) for shape in shapes]


def parameters(seed=0, shapes=SHAPES, device="cpu"):
    return [nn.Parameter(tensor) for tensor in tensors(shapes, seed, device=device)]


def distance(tensor, expected):
    """Relative to the largest expected value."""
    return np.abs(tensor.detach().cpu().double().numpy() - expected).max() / np.abs(expected).max()


def rates_up_and_down(steps):
    return [3.0 * math.sin(math.pi * step / steps) ** 2 for step in range(steps)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("in_denominator", [True, False])
@both_forms
@both_variants
def test_follows_its_equations_over_50_steps(variant, foreach, in_denominator, device):
    weights, rates = parameters(device=device), rates_up_and_down(50)
    gradients = [tensors(SHAPES, 1 + step, scale=10.0 ** (step % 3), device=device) for step in range(50)]
    start = [weight.detach().cpu().numpy().copy() for weight in weights]
    options = {"momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02, "epsilon": 1e-3}
    optimizer = LARS(weights, lr=0.0, variant=variant, decay_in_denominator=in_denominator, foreach=foreach, **options)
    run(optimizer, weights, gradients, rates)
    for index, weight in enumerate(weights):
        series = [step[index].cpu().numpy() for step in gradients]
        w, v = reference(
            start[index], series, rates, variant=variant, mu=0.9, decay=0.01, eta=0.02, eps=1e-3,
            in_denominator=in_denominator,
        )  # fmt: skip
        assert distance(weight, w) < 1e-5
        assert distance(optimizer.state[weight]["momentum_buffer"], v) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
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
    variant, foreach, adapt, mu, decay, eta, rates, weight_exponent, gradient_exponent, seed
):
    # Without the trust ratio the step's size is the gradient's, and with large ones nothing is left of the weights.
    gradient_exponent = gradient_exponent if adapt else min(gradient_exponent, weight_exponent)
    (start,) = tensors([(4, 6)], seed, scale=10.0**weight_exponent)
    gradients = [tensors([(4, 6)], seed + 1 + step, scale=10.0**gradient_exponent) for step in range(len(rates))]
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
    assert all(torch.equal(a, b) for a, b in zip(paper, uncorrected, strict=True))
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
    assert all(torch.equal(a, b) for a, b in zip(left_alone, same, strict=True))
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
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_the_norm_of_a_large_matrix_keeps_its_digits():
    (weight,) = tensors([(2048, 4096)], 0, scale=0.005)
    gradient = torch.zeros_like(weight)
    gradient[0, 0] = 2.0  # its norm is exact, so that nothing hides an error of the weights' norm
    parameter, expected = nn.Parameter(weight.clone()), 0.001 * weight.double().norm().item()
    optimizer = LARS([parameter], lr=0.0, epsilon=0.0)
    run(optimizer, [parameter], [[gradient]], [1.0])
    assert optimizer.state[parameter]["momentum_buffer"][0, 0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_gradients_may_lie_in_another_memory_order_than_their_weights(kind):
    results = []
    for order in (torch.channels_last, torch.contiguous_format):
        layer = build_model(ModelPlan(name="resnet_small", image_px=32), 10, seed=0).conv1
        (gradient,) = tensors([layer.weight.shape], 1)
        optimizer = build_optimizer(layer, OptimizerPlan(kind=kind))
        run(optimizer, [layer.weight], [[gradient.to(memory_format=order)]] * 3, [0.1] * 3)
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@both_forms
@both_variants
def test_resumes_bit_for_bit(variant, foreach):
    rates, gradients = rates_up_and_down(12), [tensors(SHAPES, 1 + step) for step in range(12)]
    through, halted = parameters(), parameters()
    options = {"lr": 0.0, "weight_decay": 1e-3, "variant": variant, "foreach": foreach}
    run(LARS(through, **options), through, gradients, rates)

    first = LARS(halted, **options)
    run(first, halted, gradients[:5], rates[:5])
    file = io.BytesIO()
    torch.save({"weights": [weight.detach() for weight in halted], "optimizer": first.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = [nn.Parameter(tensor) for tensor in saved["weights"]]
    second = LARS(resumed, lr=1.0)
    second.load_state_dict(saved["optimizer"])
    run(second, resumed, gradients[5:], rates[5:])
    assert all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))


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


def test_torchs_schedulers_drive_it():
    weights = parameters()
    optimizer = LARS(weights, lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run_once = tensors(SHAPES, 1)
    for weight, gradient in zip(weights, run_once, strict=True):
        weight.grad = gradient
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("lr", math.nan),
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
