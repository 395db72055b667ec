"""Real half precision: what is stored in fp16, how far it is from fp32, and what an overflow does."""

import math

import pytest
import torch
from drawn import CLASSES, bits, differing, drawn, eager, parts_of, walked
from torch import Tensor
from torch.nn.functional import cross_entropy

from fourminutes.models import build_model
from fourminutes.plan import ModelPlan
from fourminutes.train.course import begin
from fourminutes.train.precision import in_precision, settle_arithmetic

PX, IMAGES = 64, 32
LOSS_SCALE = 1024.0
CPU = torch.device("cpu")
NETWORKS = {"resnet_small": 1.0, "resnet50": 0.25, "alexnet_bn": 0.25}
# Relative distance of the whole gradient from fp32's; fp16 has 11 bits of mantissa, bf16 8, and batch norms amplify.
NEAR = {"half": 0.1, "amp": 0.1, "half-lars": 0.1, "bf16": 0.5}


def pass_of(name: str, precision: str, device: torch.device) -> tuple[float, Tensor]:
    """Loss and gradient, all parameters' in one and unscaled, of the network of that name on the same pictures."""
    settle_arithmetic()
    plan = ModelPlan(name=name, width=NETWORKS[name], image_px=PX, **({"dropout": 0.0} if "alex" in name else {}))
    model = build_model(plan, CLASSES, seed=0).to(device)
    images, labels = drawn(IMAGES, PX, device, seed=1)
    loss = cross_entropy(in_precision(model, precision, device)(images), labels)
    assert loss.dtype == torch.float32
    (loss * LOSS_SCALE).backward()
    gradient = torch.cat([parameter.grad.double().cpu().flatten() for parameter in model.parameters()]) / LOSS_SCALE
    return loss.item(), gradient


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_is_that_of_the_cpu(gpu, name):
    """So TF32 is off: with its 10 bits, as many as fp16 has, the distance would be that of half precision."""
    loss, gradient = pass_of(name, "fp32", gpu)
    expected_loss, expected = pass_of(name, "fp32", CPU)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert distance(gradient, expected) < 3e-3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", NEAR)
def test_loss_and_gradient_are_near_those_of_fp32(gpu, name, precision):
    loss, gradient = pass_of(name, precision, gpu)
    expected_loss, expected = pass_of(name, "fp32", gpu)
    assert loss == pytest.approx(expected_loss, rel=1e-2)
    assert 0 < distance(gradient, expected) < NEAR[precision]


def test_half_is_what_the_cpu_simulates(gpu):
    """The CPU's fp16 storage with fp32 arithmetic is a stand-in for this; both are as near to each other as to fp32."""
    loss, gradient = pass_of("resnet_small", "half", gpu)
    expected_loss, expected = pass_of("resnet_small", "half", CPU)
    assert loss == pytest.approx(expected_loss, rel=2e-3)
    assert distance(gradient, expected) < NEAR["half"]


@pytest.mark.parametrize(
    ("precision", "expected"), [("half", torch.float16), ("amp", torch.float16), ("fp32", torch.float32)]
)
def test_activations_are_stored_in_the_type_that_is_promised(gpu, precision, expected):
    model = build_model(ModelPlan(name="resnet_small", image_px=PX), CLASSES, seed=0).to(gpu)
    network, seen = in_precision(model, precision, gpu), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.dtype}))
    network(drawn(4, PX, gpu, seed=1).images)
    convolutions_and_norms = {name: dtype for name, dtype in seen.items() if "conv" in name or "bn" in name}
    assert len(convolutions_and_norms) > 10
    assert set(convolutions_and_norms.values()) == {expected}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["half", "amp", "half-lars"])
def test_an_overflow_skips_the_step_and_halves_the_scale(gpu, precision):
    """The scale is far too large at first; nothing but it moves until it has come down, then training goes on."""
    parts = parts_of(gpu, precision=precision, loss_scale={"initial": 2.0**24}, max_skipped_steps=25)
    course, stepper = begin(parts), eager(parts)
    before, news = bits(parts), []
    while not news or news[-1].skipped:
        assert course.step == 0
        assert parts.loss_scale.value == 2.0 ** (24 - len(news))
        news += walked(parts, course, stepper, 1)
        if news[-1].skipped:
            unchanged = {name: tensor for name, tensor in bits(parts).items() if name in before}
            # Of a skipped step batch norm's count of batches alone tells.
            assert all("num_batches" in name for name in differing(unchanged, before))
    assert 1 < len(news) <= 24
    assert course.step == 1
    assert math.isfinite(news[-1].loss)
    assert [name for name in differing(bits(parts) | before, bits(parts)) if name.endswith("weight")]


@pytest.mark.parametrize("precision", ["half", "amp"])
def test_the_same_seed_gives_the_same_bits(gpu, precision):
    runs = []
    for _ in range(2):
        parts = parts_of(gpu, precision=precision)
        walked(parts, begin(parts), eager(parts), 5)
        runs.append(bits(parts))
    assert not differing(*runs)
