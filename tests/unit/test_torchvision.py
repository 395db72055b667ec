"""Our ResNet-50 against torchvision's: the same state, outputs, gradients and running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support.reference_torchvision import import_torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fourminutes.models import build_model
from fourminutes.plan import ModelPlan

IMAGE_PX = 112  # the smallest side with torchvision's stem
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def our_resnet50() -> nn.Module:
    return build_model(ModelPlan(name="resnet50", image_px=IMAGE_PX), 1000, seed=0)


def their_resnet50() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return import_torchvision().models.resnet50()


def draw_norms(model: nn.Module) -> None:
    """Give every norm a γ and β of its own: where γ is 0, as in our first weights, a branch plays no part."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)


def pictures(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, IMAGE_PX, IMAGE_PX, generator=generator, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last), torch.tensor([0, 1, 500, 999])


@dataclass(frozen=True)
class Pass:
    """What a training pass, forward and back, shows and leaves."""

    model: nn.Module
    logits: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def train(model: nn.Module, dtype: torch.dtype) -> Pass:
    images, labels = pictures(dtype)
    logits = model(images)
    loss = cross_entropy(logits, labels)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Pass(model, logits.detach(), loss.detach(), gradients)


@pytest.fixture(scope="module", params=TOLERANCES, ids=str)
def passes(request) -> tuple[Pass, Pass, float]:
    """The same pass through our network and through torchvision's, and the error to expect of its number format."""
    ours, theirs = our_resnet50(), their_resnet50()
    draw_norms(ours)
    theirs.load_state_dict(ours.state_dict())
    # Both in one memory order, and so with the same kernels: others round otherwise, and a sum that rounds to the other
    # side of a ReLU's corner changes gradients by far more than rounding.
    theirs.to(memory_format=torch.channels_last)
    return *(train(model.to(request.param), request.param) for model in (ours, theirs)), TOLERANCES[request.param]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    assert ours.shape == theirs.shape
    assert theirs.norm() > 0
    return float((ours - theirs).norm() / theirs.norm())


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(pictures(torch.float32)[0])


def test_both_have_the_same_parameters_in_the_same_order():
    ours, theirs = (
        [(name, tuple(p.shape)) for name, p in m.named_parameters()] for m in (our_resnet50(), their_resnet50())
    )
    assert ours == theirs
    assert (sum(torch.Size(shape).numel() for _, shape in theirs), len(theirs)) == (25_557_032, 161)


@pytest.mark.parametrize("into", ["ours", "theirs"])
def test_the_state_of_either_loads_into_the_other(into):
    source, target = (their_resnet50(), our_resnet50()) if into == "ours" else (our_resnet50(), their_resnet50())
    draw_norms(source)
    target.load_state_dict(source.state_dict(), strict=True)
    assert distance(outputs(target), outputs(source)) < 1e-4


def test_logits_and_loss_are_torchvisions(passes):
    ours, theirs, tolerance = passes
    assert distance(ours.logits, theirs.logits) < tolerance
    assert distance(ours.loss, theirs.loss) < tolerance


def test_every_gradient_is_torchvisions(passes):
    ours, theirs, tolerance = passes
    assert list(ours.gradients) == list(theirs.gradients)
    far = {name: distance(ours.gradients[name], gradient) for name, gradient in theirs.gradients.items()}
    assert max(far.values()) < tolerance, far


def test_running_statistics_after_a_pass_are_torchvisions(passes):
    ours, theirs, tolerance = passes
    their_buffers = dict(theirs.model.named_buffers())
    assert len(their_buffers) == 3 * 53
    for name, buffer in ours.model.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert buffer == their_buffers[name] == 1
        else:
            assert distance(buffer, their_buffers[name]) < tolerance
