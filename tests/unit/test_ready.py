"""When gradients are ready: as in training, and nothing of the network moved."""

import torch
from torch import Tensor, nn

from fourminutes.comm.ready import moments_of


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 6 * 6, 2))
    return nn.Sequential(*layers)


def test_passes_are_those_of_training() -> None:
    net, modes = network(), set[bool]()
    net.eval()
    net[1].register_forward_hook(lambda module, _inputs, _output: modes.add(module.training))
    moments_of(net, torch.randn(2, 3, 8, 8), passes=2)
    assert modes == {True}
    assert not net.training


def test_statistics_random_state_and_gradients_are_as_before() -> None:
    net, images = network(), torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.random.get_rng_state()
    moments_of(net, images, passes=2)
    after: dict[str, Tensor] = net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.grad is None for weight in net.parameters())


def test_every_tensor_has_a_moment_in_every_pass() -> None:
    net = network()
    moments = moments_of(net, torch.randn(2, 3, 8, 8), passes=3)
    assert [len(times) for times in moments] == [3] * len(list(net.parameters()))
    # The last layer's weight before the first one's, in each pass.
    assert all(last < first for last, first in zip(moments[4], moments[0], strict=True))
