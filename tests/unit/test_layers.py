"""The networks as lists of layers, against the networks themselves."""

import itertools

import pytest
import torch
from torch import nn

from fourminutes.models import build_model
from fourminutes.plan import ModelPlan
from fourminutes.scale.layers import Roofline, backward, layers_of, readiness, ready_after

PLANS = [
    ModelPlan(name="resnet50"),
    ModelPlan(name="resnet50", width=0.25, image_px=56),
    ModelPlan(name="resnet50", width=0.5, image_px=32),
    ModelPlan(name="resnet_small", image_px=32),
    ModelPlan(name="resnet_small", image_px=48, width=2, stem_stride=2),
    ModelPlan(name="alexnet"),
    ModelPlan(name="alexnet", image_px=64, width=0.25),
    ModelPlan(name="alexnet_bn"),
    ModelPlan(name="alexnet_bn", image_px=227),
    ModelPlan(name="alexnet_bn", image_px=56, width=0.25, bn_after_pool5=False),
]


def _named(plan: ModelPlan) -> str:
    return f"{plan.name}-{plan.width:g}-{plan.image_px}"


@pytest.mark.parametrize("plan", PLANS, ids=_named)
def test_tensors_are_the_networks_own_in_its_order(plan: ModelPlan) -> None:
    network = build_model(plan, 100, seed=0)
    listed = [(f"{layer.name}.{part}", size) for layer in layers_of(plan, 100) for part, size in _parts(layer.tensors)]
    assert listed == [(name, weight.numel()) for name, weight in network.named_parameters()]


def _parts(tensors: tuple[int, ...]) -> list[tuple[str, int]]:
    return list(zip(("weight", "bias"), tensors, strict=False))


@pytest.mark.parametrize("plan", PLANS, ids=_named)
def test_arithmetic_and_activations_are_those_of_a_forward_pass(plan: ModelPlan) -> None:
    network = build_model(plan, 100, seed=0).eval()
    seen: dict[str, tuple[float, float]] = {}

    def note(name: str, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        macs = 0.0
        if isinstance(module, nn.Conv2d):
            macs = outputs.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs = module.weight.numel()
        seen[name] = (macs, inputs.numel() + outputs.numel())

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, out, name=name: note(name, module, inputs[0], out))
    network(torch.zeros(1, 3, plan.image_px, plan.image_px))
    assert {layer.name: (layer.macs, layer.moved) for layer in layers_of(plan, 100)} == seen


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"), [("resnet50", 25_557_032, 4.09), ("alexnet_bn", 62_381_096, 1.135)]
)
def test_the_papers_networks_have_their_known_sizes(name: str, parameters: int, giga_macs: float) -> None:
    layers = layers_of(ModelPlan.model_validate({"name": name}), 1000)
    assert sum(size for layer in layers for size in layer.tensors) == parameters
    assert sum(layer.macs for layer in layers) / 1e9 == pytest.approx(giga_macs, rel=2e-3)


def test_gradients_come_from_the_last_layer_to_the_first() -> None:
    layers = layers_of(ModelPlan(name="alexnet_bn"), 1000)
    ready = readiness(layers, 0.5)
    assert ready.ready_s[0] == ready.ready_s[1] == 0.5
    assert all(earlier >= later for earlier, later in itertools.pairwise(ready.ready_s))
    # fc8 has 4,096,000 of the multiplications, of which all but conv1's are done twice.
    macs = [layer.macs for layer in layers]
    assert ready.ready_s[-1] == pytest.approx(0.5 * 4_096_000 / (sum(macs) - macs[0] / 2))


def test_a_layer_takes_its_arithmetic_or_its_way_through_memory() -> None:
    fc6 = next(layer for layer in layers_of(ModelPlan(name="alexnet_bn"), 1000) if layer.name == "fc6")
    weights = 9216 * 4096 + 4096
    in_memory, in_registers = Roofline(1e15, 1e9, 2), Roofline(1e9, 1e15, 2)
    # With few images the weights' way decides, with many that of the activations.
    assert in_memory.forward_s(fc6, 10) == pytest.approx(2 * (10 * (9216 + 4096) + weights) / 1e9)
    assert in_registers.forward_s(fc6, 10) == pytest.approx(2 * 10 * 9216 * 4096 / 1e9)


def test_the_backward_pass_is_twice_the_forward_one_but_for_the_first_layer() -> None:
    assert backward([3.0, 1.0, 2.0]) == [3.0, 2.0, 4.0]
    assert ready_after([3.0, 1.0, 2.0]) == [9.0, 6.0, 4.0]
