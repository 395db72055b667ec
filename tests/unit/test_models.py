"""The networks' parameters, shapes and first weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from fourminutes.errors import UserError
from fourminutes.models import build_model
from fourminutes.models.alexnet import AlexNet, AlexNetBN
from fourminutes.models.resnet import BasicBlock, Bottleneck, resnet50, resnet_small
from fourminutes.plan import ModelPlan

WITH_NORMS = ("alexnet_bn", "resnet50", "resnet_small")
NAMES = ("alexnet", *WITH_NORMS)


def shapes_only(make, *args, **kwargs):
    """A network on the meta device: all shapes are right, nothing is computed."""
    with torch.device("meta"):
        return make(*args, **kwargs)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters()), len(list(model.parameters()))


def output_of(model, part, image_px):
    """The shape that the named part of the network makes of one picture."""
    shapes = []
    model.get_submodule(part).register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    model(torch.empty(1, 3, image_px, image_px, device=next(model.parameters()).device))
    return shapes[0]


def operations(model, image_px):
    """Floating-point operations of one picture's forward pass."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_px, image_px, device=next(model.parameters()).device))
    return counter.get_total_flops()


@pytest.mark.parametrize("image_px", [224, 227])
@pytest.mark.parametrize(
    ("network", "settings", "parameters", "tensors"),
    [
        (AlexNet, {}, 62_378_344, 16),
        (AlexNetBN, {}, 62_381_096, 26),
        (AlexNetBN, {"bn_after_pool5": False}, 62_380_584, 24),
    ],
)
def test_alexnets_have_the_papers_parameters(network, settings, parameters, tensors, image_px):
    model = shapes_only(network, 1000, image_px=image_px, **settings)
    assert count(model) == (parameters, tensors)
    assert output_of(model, "pool5", image_px) == (1, 256, 6, 6)


def test_plain_alexnet_has_no_norm_of_any_kind():
    kinds = {type(module) for module in shapes_only(AlexNet, 10).children()}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.Dropout}


def test_without_bn5_pool5_goes_straight_to_fc6_and_the_rest_stays():
    full, ablated = (
        [name for name, _ in shapes_only(AlexNetBN, 10, bn_after_pool5=after_pool5).named_children()]
        for after_pool5 in (True, False)
    )
    assert ablated == [name for name in full if name != "norm5"]
    assert ablated[ablated.index("pool5") + 1 : ablated.index("fc6")] == ["flatten"]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_bn"])
def test_the_plans_dropout_is_on_fc6_and_fc7(name):
    model = build_model(ModelPlan(name=name, width=0.125, image_px=32, dropout=0.2), 10, seed=0)
    rates = {part: module.p for part, module in model.named_children() if isinstance(module, nn.Dropout)}
    assert rates == {"drop6": 0.2, "drop7": 0.2}


def test_alexnets_convolutions_and_fully_connected_layers_are_the_papers_two_segments():
    sizes = [parameter.numel() for parameter in shapes_only(AlexNetBN, 1000).parameters()]
    assert sum(sizes[20:]) == 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000


def test_alexnet_normalizes_after_pool1_pool2_relu3_relu4_and_pool5():
    order = [name for name, _ in shapes_only(AlexNetBN, 10).named_children()]
    before = [order[order.index(f"norm{number}") - 1] for number in range(1, 6)]
    assert before == ["pool1", "pool2", "relu3", "relu4", "pool5"]
    assert order[order.index("norm5") + 1 :] == ["flatten", "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]


@pytest.mark.parametrize(("image_px", "side"), [(32, 3), (48, 5), (64, 3), (96, 5), (128, 3), (160, 4), (256, 7)])
def test_alexnets_last_norm_sees_several_pixels_at_every_input_size(image_px, side):
    assert output_of(shapes_only(AlexNetBN, 10, image_px=image_px), "norm5", image_px) == (1, 256, side, side)
    assert output_of(shapes_only(AlexNet, 10, image_px=image_px), "pool5", image_px) == (1, 256, side, side)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_bn"])
def test_alexnet_names_the_smallest_input(name):
    assert output_of(shapes_only(AlexNetBN, 10, image_px=31), "norm5", 31)[-1] == 3
    with pytest.raises(UserError, match=r"model\.image_px: 30 px .* 31 or more"):
        build_model(ModelPlan(name=name, image_px=30), 10, seed=0)


def test_alexnet_starts_with_the_caffe_models_fc6_and_fc7_and_a_wider_fc8():
    model = build_model(ModelPlan(name="alexnet_bn", image_px=227), 1000, seed=0)
    for layer, sigma, bias in ((model.fc6, 0.005, 0.1), (model.fc7, 0.005, 0.1), (model.fc8, 0.01, 0.0)):
        assert layer.weight.std().item() == pytest.approx(sigma, rel=0.01)
        assert torch.all(layer.bias == bias)
    assert model.conv2.weight.std().item() == pytest.approx((2 / (96 * 5 * 5)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("part", ["fc6", "fc7", "fc8"])
def test_a_narrow_alexnets_layers_start_as_widely_spread_as_the_full_ones(part):
    narrow = build_model(ModelPlan(name="alexnet_bn", image_px=64, width=0.125), 10, seed=0).get_submodule(part)
    gain = {"fc6": 0.005 * 96, "fc7": 0.005 * 64, "fc8": 0.01 * 64}[part]
    assert narrow.weight.std().item() * narrow.in_features**0.5 == pytest.approx(gain, rel=0.05)


def expected_resnet50_state(class_count):
    """Torchvision's keys and shapes, spelled out by their rules."""
    state = {"conv1.weight": (64, 3, 7, 7)} | norm_state("bn1", 64)
    channels_in = 64
    for layer, (depth, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for index in range(depth):
            block = f"layer{layer}.{index}"
            for number, shape in (
                (1, (width, channels_in, 1, 1)),
                (2, (width, width, 3, 3)),
                (3, (4 * width, width, 1, 1)),
            ):
                state |= {f"{block}.conv{number}.weight": shape} | norm_state(f"{block}.bn{number}", shape[0])
            if index == 0:
                state |= {f"{block}.downsample.0.weight": (4 * width, channels_in, 1, 1)}
                state |= norm_state(f"{block}.downsample.1", 4 * width)
            channels_in = 4 * width
    return state | {"fc.weight": (class_count, 2048), "fc.bias": (class_count,)}


def norm_state(name, channels):
    of_channels = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return of_channels | {f"{name}.num_batches_tracked": ()}


@pytest.mark.parametrize("image_px", [32, 224])
def test_resnet50_has_torchvisions_state(image_px):
    model = shapes_only(resnet50, 1000, image_px=image_px)
    state = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(state.items()) == list(expected_resnet50_state(1000).items())
    assert count(model) == (25_557_032, 161)


def test_resnet50_has_the_stride_in_the_3x3_convolution():
    blocks = [module for module in shapes_only(resnet50, 10).modules() if isinstance(module, Bottleneck)]
    strides = [(block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0]) for block in blocks]
    assert [index for index, stride in enumerate(strides) if stride == (1, 2, 1)] == [3, 7, 13]
    assert strides.count((1, 1, 1)) == 13


@pytest.mark.parametrize(("image_px", "side"), [(16, 2), (32, 4), (56, 4), (64, 4), (112, 4), (224, 7)])
def test_resnet50s_last_stage_sees_several_pixels_at_every_input_size(image_px, side):
    model = shapes_only(resnet50, 10, image_px=image_px)
    assert output_of(model, "layer4", image_px) == (1, 2048, side, side)


def test_resnet_small_has_78k_parameters():
    model = shapes_only(resnet_small, 10)
    assert count(model) == (78_042, 29)
    assert output_of(model, "layer3", 32) == (1, 64, 8, 8)


def test_a_stem_of_stride_2_halves_resnet_smalls_shapes_for_a_quarter_of_the_arithmetic():
    full, halved = (
        build_model(ModelPlan(name="resnet_small", image_px=32, stem_stride=stride), 10, seed=0) for stride in (None, 2)
    )
    assert count(halved) == count(full)
    assert output_of(halved, "layer3", 32) == (1, 64, 4, 4)
    assert operations(halved, 32) == pytest.approx(operations(full, 32) / 4, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"name": "resnet50", "bn_after_pool5": False}, "bn_after_pool5: resnet50 has no such setting"),
        ({"name": "alexnet", "bn_after_pool5": False}, "bn_after_pool5: alexnet has no such setting, only alexnet_bn;"),
        ({"name": "resnet_small", "dropout": 0.1}, "only alexnet and alexnet_bn; leave it out"),
        ({"name": "alexnet", "stem_stride": 2}, "stem_stride: alexnet has no such setting, only resnet_small;"),
    ],
)
def test_a_setting_that_the_named_network_does_not_have_is_refused(settings, refusal):
    with pytest.raises(ValueError, match=refusal):
        ModelPlan(**settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_written_out_with_its_defaults_is_read_again(name):
    plan = ModelPlan(name=name)
    assert ModelPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(("name", "block"), [("resnet50", Bottleneck), ("resnet_small", BasicBlock)])
def test_every_residual_block_starts_as_its_shortcut(name, block):
    model = build_model(ModelPlan(name=name, width=0.125, image_px=32), 10, seed=0).eval()
    blocks = [module for module in model.modules() if isinstance(module, block)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(bool(torch.all(norm.weight == 0)) for norm in norms) == len(blocks)
    assert sum(bool(torch.all(norm.weight == 1)) for norm in norms) == len(norms) - len(blocks)
    first = blocks[0]
    x = torch.randn(2, first.conv1.in_channels, 8, 8)
    shortcut = x if first.downsample is None else first.downsample(x)
    assert torch.equal(first(x), torch.relu(shortcut))


@pytest.mark.parametrize(("width", "channels"), [(0.01, 8), (0.25, 16), (0.5, 32), (0.7, 48), (1.0, 64), (2.0, 128)])
def test_width_scales_channels_to_multiples_of_8(width, channels):
    model = shapes_only(resnet50, 10, width=width)
    assert model.conv1.out_channels == channels
    assert all(module.out_channels % 8 == 0 for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("image_px", [32, 64, 224])
@pytest.mark.parametrize("name", NAMES)
def test_pictures_become_finite_logits_and_every_parameter_gets_a_gradient(name, image_px):
    model = build_model(ModelPlan(name=name, width=0.125, image_px=image_px), 7, seed=0)
    logits = model(torch.randn(2, 3, image_px, image_px).contiguous(memory_format=torch.channels_last))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    logits.logsumexp(1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("image_px", [33, 64])
def test_a_strided_shortcut_of_8_channels_is_the_convolution_that_it_stands_for(image_px):
    """Whose own gradient's kernel corrupts memory on some CPUs; in float64 torch takes another one."""
    model = build_model(ModelPlan(name="resnet_small", width=0.25, image_px=64), 7, seed=0).double()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = [one for one in convolutions if (one.in_channels, one.kernel_size, one.stride) == (8, (1, 1), (2, 2))]
    assert len(shortcuts) == 2
    for shortcut in shortcuts:
        x = torch.randn(2, 8, image_px, image_px, dtype=torch.float64, requires_grad=True)
        ours = torch.autograd.grad(shortcut(x).square().sum(), (x, shortcut.weight))
        theirs = torch.autograd.grad(conv2d(x, shortcut.weight, stride=2).square().sum(), (x, shortcut.weight))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_network(name):
    plan = ModelPlan(name=name, width=0.125, image_px=32)
    first, again, other = (build_model(plan, 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_building_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    build_model(ModelPlan(name="resnet_small", image_px=32), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_lie_in_channels_last_order(name):
    model = build_model(ModelPlan(name=name, width=0.125, image_px=32), 10, seed=0)
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_running_statistics_start_from_zero_mean_and_unit_variance(name):
    model = build_model(ModelPlan(name=name, width=0.125, image_px=32), 10, seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.running_mean == 0)
            assert torch.all(module.running_var == 1)
            assert module.num_batches_tracked == 0
