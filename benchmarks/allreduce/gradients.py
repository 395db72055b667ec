"""A network's set of gradients without its computing: a backward pass that hands all of them over at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse_by_size
from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.topology import Topology
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, ReducePlan

CLASSES = 1000


class _HandOver(torch.autograd.Function):
    """Sends every parameter's gradient back at once: the parameter itself."""

    @staticmethod
    def forward(ctx: Any, dummy: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return dummy.sum()

    @staticmethod
    def backward(ctx: Any, *_gradient: Any) -> Any:
        return None, *(parameter.detach() for parameter in ctx.saved_tensors)


class Gradients(nn.Module):
    """As many parameters, of the same sizes and in the same order, as the network of that name has."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])

    def state_dict(self, *_arguments: Any, **_options: Any) -> Any:
        """Nothing: the weights are never looked at, and take no memory while nobody writes to them."""
        return {}

    def forward(self, dummy: Tensor) -> Any:
        """A number without a meaning, whose backward pass costs nothing but the hand-over."""
        return _HandOver.apply(dummy, *self.weights)


def sizes_of(name: Any) -> list[int]:
    """Elements of every trained parameter of a network of the paper on 1,000 classes."""
    with torch.device("cpu"):
        model = build_model(ModelPlan(name=name), CLASSES, seed=0)
    return [weight.numel() for weight in model.parameters() if weight.requires_grad]


class Pass:
    """A backward pass with its all-reduce, as often as it is called."""

    def __init__(self, one_pass: Callable[[], None], state: HybridState | None = None) -> None:
        self._one_pass, self._state = one_pass, state
        one_pass()  # after it DDP lays its buckets out anew

    def __call__(self) -> None:
        """Once more."""
        self._one_pass()

    def close(self) -> None:
        """End the threads, so that the buffers can be freed."""
        if self._state is not None:
            self._state.close()


def ddp_pass(sizes: Sequence[int], hook: Callable[[Any, Any], Any] | None = None) -> Pass:
    """DistributedDataParallel as it comes, or with a hook of torch's."""
    network = DistributedDataParallel(Gradients(sizes), gradient_as_bucket_view=True, init_sync=False)
    if hook is not None:
        network.register_comm_hook(None, hook)
    return Pass(_backward(network))


def hook_pass(sizes: Sequence[int], topology: Topology, settings: ReducePlan) -> Pass:
    """DistributedDataParallel with our hook."""
    state, bucket_mib = HybridState(topology, settings), settings.bucket_mib
    network = DistributedDataParallel(
        Gradients(sizes), gradient_as_bucket_view=True, init_sync=False, bucket_cap_mb=bucket_mib
    )
    network.register_comm_hook(state, hybrid_hook)
    return Pass(_backward(network), state)


def flat_pass(sizes: Sequence[int], topology: Topology, settings: ReducePlan) -> Pass:
    """Our own front end, with static buffers and exact bucket sizes."""
    state = HybridState(topology, settings)
    fused = fuse_by_size([4 * size for size in sizes], settings.bucket_mib * 2**20)
    return Pass(_backward(FlatParallel(Gradients(sizes), state, fused)), state)


def tensor_pass(sizes: Sequence[int], topology: Topology) -> Pass:
    """One call of the library's all-reduce for each tensor, one after another."""
    gradients = [torch.zeros(size) for size in sizes]

    def one_pass() -> None:
        for gradient in gradients:
            distributed.all_reduce(gradient, group=topology.world)
            gradient.div_(topology.world_size)

    return Pass(one_pass)


def _backward(network: nn.Module) -> Callable[[], None]:
    dummy = torch.zeros(1, requires_grad=True)

    def one_pass() -> None:
        network.zero_grad(set_to_none=True)
        network(dummy).backward()

    return one_pass
