"""Half precision: what is rounded, what stays fp32, and that a run in it goes where a run in fp32 goes."""

from copy import deepcopy
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fourminutes.models import build_model
from fourminutes.optim import build_optimizer, set_rate
from fourminutes.plan import ModelPlan, OptimizerPlan
from fourminutes.train.precision import arithmetic, in_precision, stores_half, uses_loss_scale

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PRECISIONS = ("fp32", "bf16", "amp", "half", "half-lars")
CLASSES, PX = 5, 16
LOSS_SCALE = 1024.0
HALF_ULP = 2.0**-11  # largest relative error of rounding to fp16


def small_model(seed: int = 0) -> nn.Module:
    return build_model(ModelPlan(name="resnet_small", width=0.25, image_px=PX), CLASSES, seed=seed)


def pictures(count: int = 80) -> tuple[Tensor, Tensor]:
    """Noise over one faint pattern a class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, PX, PX, generator=generator)
    labels = torch.arange(count) % CLASSES
    return patterns[labels] / 2 + torch.randn(count, 3, PX, PX, generator=generator), labels


def gradient(model: nn.Module, precision: str = "fp32", device: torch.device = CPU) -> Tensor:
    """Of the loss over 20 pictures, all parameters' in one, unscaled."""
    network = in_precision(model, precision, device)
    images, labels = pictures(20)
    (cross_entropy(network(images), labels) * LOSS_SCALE).backward()
    return torch.cat([parameter.grad.float().flatten() / LOSS_SCALE for parameter in model.parameters()])


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """`model` with its weights moved by up to what rounding them to fp16 may move them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + HALF_ULP * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return model


def is_half(x: Tensor) -> bool:
    return torch.equal(x, x.half().float())


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- what in_precision promises in every precision ------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parameters_and_keys_are_the_models_own(precision: str) -> None:
    model = small_model()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    network = in_precision(model, precision, CPU)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in network.parameters()] == [id(parameter) for parameter in parameters]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_fp32_and_near_those_of_fp32(precision: str) -> None:
    images, _ = pictures(8)
    exact = small_model()(images).detach()
    network = in_precision(small_model(), precision, CPU)
    tolerance = {"fp32": 0.0, "bf16": 2e-2}.get(precision, 2e-3)
    logits = network(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0, atol=tolerance * float(exact.abs().max()))
    network.eval()
    with torch.inference_mode():
        assert network(images).dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_have_the_parameters_type(precision: str) -> None:
    model = small_model()
    assert gradient(model, precision).isfinite().all()
    expected = torch.float16 if precision == "half-lars" else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {expected}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}


def order_of_layers(precision: str) -> list[str]:
    """Names of the layers, as their gradients come in a backward pass."""
    model = small_model()
    come: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        parameter.register_post_accumulate_grad_hook(lambda _parameter, layer=layer: come.setdefault(layer))
    gradient(model, precision)
    return list(come)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_come_while_the_backward_pass_runs(precision: str) -> None:
    """In the order of fp32, so that a reduction can go beside the pass; casts made before it would hold them back."""
    assert order_of_layers(precision) == order_of_layers("fp32")


@pytest.mark.parametrize("precision", ["half", "half-lars"])
def test_a_pass_that_fails_leaves_the_parameters_in_their_place(precision: str) -> None:
    model = small_model()
    parameters = list(model.parameters())
    network = in_precision(model, precision, CPU)
    with pytest.raises(RuntimeError, match=r"shape|size|channels"):
        network(torch.zeros(4, 1, PX, PX))
    assert [id(one) for one in model.parameters()] == [id(one) for one in parameters]


@pytest.mark.parametrize("precision", ["half", "half-lars"])
def test_a_copied_network_trains_its_own_parameters(precision: str) -> None:
    images, _ = pictures(4)
    network = in_precision(small_model(), precision, CPU).eval()
    before = network(images)
    copied = deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    logits = copied(images)
    assert not torch.equal(logits, before)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(network(images), before)


@pytest.mark.parametrize(("precision", "dtype"), [("amp", torch.float16), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_its_type(precision: str, dtype: torch.dtype) -> None:
    model = small_model()
    seen = []
    model.conv1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    in_precision(model, precision, CPU)(pictures(4)[0])
    assert seen == [dtype]


def test_what_the_record_says() -> None:
    assert [arithmetic(precision, CPU) for precision in PRECISIONS] == [
        "fp32",
        "bf16 autocast",
        "fp16 autocast",
        "fp16 storage, fp32 arithmetic (CPU)",
        "fp16 storage, fp32 arithmetic (CPU)",
    ]
    assert arithmetic("half", GPU) == arithmetic("half-lars", GPU) == "fp16"
    assert [precision for precision in PRECISIONS if uses_loss_scale(precision)] == ["amp", "half", "half-lars"]
    assert [precision for precision in PRECISIONS if stores_half(precision)] == ["half", "half-lars"]


# --- fp16 as a storage format ---------------------------------------------------------------------------------------


def test_linear_layer_by_hand() -> None:
    """Images, weights, output, and all three gradients are rounded, each once, and nothing else is."""
    torch.manual_seed(0)
    layer, images, upstream = nn.Linear(7, 3), torch.randn(4, 7, requires_grad=True), torch.randn(4, 3)
    logits = in_precision(layer, "half", CPU)(images)
    logits.backward(upstream)
    x, w, b, g = (each.detach().half().float() for each in (images, layer.weight, layer.bias, upstream))
    assert torch.equal(logits, (torch.addmm(b, x, w.t())).half().float())
    assert torch.equal(layer.weight.grad, (g.t() @ x).half().float())
    assert torch.equal(layer.bias.grad, g.sum(0).half().float())
    assert torch.equal(images.grad, (g @ w).half().float())


@pytest.mark.parametrize("precision", ["half", "half-lars"])
@pytest.mark.parametrize("name", ["resnet_small", "resnet50", "alexnet_bn"])
def test_all_that_is_kept_for_the_backward_pass_is_half(name: str, precision: str) -> None:
    """Also what residual blocks compute between their modules; but vectors, which batch norm keeps in fp32."""
    model = build_model(ModelPlan(name=name, width=0.125, image_px=32), CLASSES, seed=0)
    network = in_precision(model, precision, CPU)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        network(torch.randn(4, 3, 32, 32))
    maps = [tensor.detach().float() for tensor in kept if tensor.dim() > 1 and tensor.is_floating_point()]
    assert len(maps) > len([module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)])
    assert all(is_half(tensor) for tensor in maps)


def test_all_gradients_between_layers_are_half() -> None:
    model = small_model()
    gradients: list[Tensor] = []
    for module in (model.conv1, model.bn1, model.layer2[0].conv1, model.layer2[0].bn2, model.layer2[0], model.fc):
        # In front of the hook that rounds, where its backward pass ends.
        module.register_forward_hook(
            lambda _module, _inputs, output: output.register_hook(gradients.append) and None, prepend=True
        )
    gradient(model, "half")
    assert len(gradients) == 6
    assert all(is_half(each) for each in gradients)


def test_storage_in_half_is_real_half_but_for_the_order_of_sums() -> None:
    """The form that GPUs run, here with real fp16 tensors on the CPU, and the form that the CPU runs."""
    models = [small_model(seed=2) for _ in range(3)]
    for model in models:
        for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
            nn.init.constant_(block.last_norm.weight, 0.1)  # at 0, where it starts, the block's branch is idle
    exact, stored, real = (
        gradient(model, precision, device)
        for model, precision, device in zip(models, ("fp32", "half", "half"), (CPU, CPU, GPU), strict=True)
    )
    assert distance(stored, real) < distance(real, exact) / 4


def test_beyond_the_range_is_infinite_and_below_it_zero() -> None:
    layer = nn.Linear(2, 2, bias=False)
    network = in_precision(layer, "half", CPU)
    for upstream, expected in ((70_000.0, torch.inf), (2.0**-26, 0.0), (2.0**-24, 2.0**-24)):
        layer.zero_grad()
        network(torch.ones(1, 2)).backward(torch.full((1, 2), upstream))
        assert torch.equal(layer.weight.grad, torch.full((2, 2), expected))


@pytest.mark.parametrize("device", [CPU, GPU], ids=["stored", "real"])
def test_micro_batches_add_up_in_fp32(device: torch.device) -> None:
    images, labels = pictures(32)
    batches = list(zip(images.chunk(4), labels.chunk(4), strict=True))
    model = small_model()
    network = in_precision(model, "half", device)
    alone = []
    for batch, targets in batches:
        model.zero_grad()
        (cross_entropy(network(batch), targets) * LOSS_SCALE).backward()
        alone.append(model.conv1.weight.grad.clone())
    model.zero_grad()
    for batch, targets in batches:
        (cross_entropy(network(batch), targets) * LOSS_SCALE).backward()
    assert all(is_half(each) for each in alone)
    assert torch.equal(model.conv1.weight.grad, alone[0] + alone[1] + alone[2] + alone[3])
    assert not is_half(model.conv1.weight.grad)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["stored", "real"])
def test_norm_keeps_its_parameters_and_statistics_in_fp32(device: torch.device) -> None:
    model = small_model()
    seen: list[Tensor] = []
    model.bn1.register_forward_pre_hook(lambda norm, _inputs: seen.append(norm.weight.detach().clone()))
    with torch.no_grad():
        model.bn1.weight.add_(2.0**-20)
    gradient(model, "half", device)
    assert torch.equal(seen[0], torch.full_like(seen[0], 1 + 2.0**-20))
    assert not is_half(model.bn1.weight.grad)
    assert not is_half(model.bn1.running_mean)


def test_masters_keep_updates_that_half_would_lose() -> None:
    """Ten steps of a tenth of the way to the next fp16 number arrive there; without masters none of them moves."""
    weights = {}
    for precision in ("half", "half-lars"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=2.0**-10 / 10)
        network = in_precision(layer, precision, CPU)
        for _ in range(10):
            optimizer.zero_grad()
            network(-torch.ones(1, 1)).sum().backward()
            optimizer.step()
        weights[precision] = layer.weight.item()
    assert weights["half"] == pytest.approx(1 + 2.0**-10, rel=1e-6)
    assert weights["half-lars"] == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_compiler_keeps_the_rounding() -> None:
    torch.manual_seed(0)
    network, images = in_precision(nn.Linear(6, 5), "half", CPU), torch.randn(4, 6)
    with torch.no_grad():
        expected, compiled = network(images), torch.compile(network, fullgraph=True)(images)
    assert is_half(compiled)
    torch.testing.assert_close(compiled, expected, rtol=2 * HALF_ULP, atol=1e-6)


# --- half against fp32 ----------------------------------------------------------------------------------------------


def trained(model: nn.Module, precision: str, steps: int = 100) -> tuple[Tensor, Tensor]:
    """The loss at every step, and the weights after them."""
    network = in_precision(model, precision, CPU)
    optimizer = build_optimizer(model, OptimizerPlan(trust_coefficient=0.02, weight_decay=5e-4))
    images, labels = pictures()
    order = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        chosen = torch.randperm(len(labels), generator=order)[:20]
        loss = cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        (loss * LOSS_SCALE).backward()
        for parameter in model.parameters():
            parameter.grad.div_(LOSS_SCALE)
        set_rate(optimizer, 2 * (1 - step / steps) ** 2)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def test_gradient_is_no_further_off_than_that_of_rounded_weights() -> None:
    """Rounding to bf16, with an eighth of the bits, would be six times as far off."""
    for seed in (1, 2, 3):
        exact, half = gradient(small_model(seed)), gradient(small_model(seed), "half")
        moved = [distance(gradient(perturbed(small_model(seed), number)), exact) for number in range(4)]
        assert 0 < distance(half, exact) < 2 * fmean(moved)


def test_a_hundred_steps_end_no_further_off_than_from_perturbed_weights() -> None:
    """Training multiplies small differences; those of half precision become no larger than any others would.

    The yardstick is two runs in fp32, the second of which starts from weights that are moved by up to half a unit in
    the last place of fp16: what storing the weights in fp16 does to them once.
    """
    losses, weights = trained(small_model(), "fp32")
    half_losses, half_weights = trained(small_model(), "half")
    others = [trained(perturbed(small_model(), number), "fp32") for number in range(4)]
    assert losses[-10:].mean() < losses[0] / 10
    assert 0 < distance(half_losses, losses) < 2 * fmean(distance(other, losses) for other, _ in others)
    assert 0 < distance(half_weights, weights) < 2 * fmean(distance(other, weights) for _, other in others)


def test_half_lars_learns_with_half_precision_everywhere() -> None:
    model = small_model()
    losses, _ = trained(model, "half-lars")
    assert losses[-10:].mean() < losses[0] / 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
