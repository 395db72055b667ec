"""How long a LARS step takes beside other optimizers' and beside the memory's speed, in one run, interleaved.

    python benchmarks/lars/lars.py

One step over the 161 tensors of ResNet-50, 25.6 million float32 weights, on 2 threads of the CPU. `pytorch_optimizer`,
the peer, must be importable; this project doesn't depend on it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fourminutes.models import build_model
from fourminutes.optim import LARS, parameter_groups
from fourminutes.plan import ModelPlan

try:
    import pytorch_optimizer
except ImportError:
    print("pytorch_optimizer: not installed; pip install --no-deps pytorch_optimizer", file=sys.stderr)
    sys.exit(2)

THREADS = 2
REPEATS = 31
RATE, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
OURS, PEER, FUSED = "LARS, ours", "LARS of pytorch_optimizer", "SGD of torch, fused"
AIMS = {PEER: 0.6, FUSED: 2.2}
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    OURS: lambda groups: LARS(groups, lr=RATE, momentum=MOMENTUM),
    PEER: lambda groups: pytorch_optimizer.LARS(groups, lr=RATE, momentum=MOMENTUM),
    f"{PEER}, foreach=False": lambda groups: pytorch_optimizer.LARS(groups, lr=RATE, momentum=MOMENTUM, foreach=False),
    FUSED: lambda groups: SGD(groups, lr=RATE, momentum=MOMENTUM, fused=True),
    "SGD of torch, default": lambda groups: SGD(groups, lr=RATE, momentum=MOMENTUM),
}


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(THREADS)
    network = build_model(ModelPlan(name="resnet50"), 1000, seed=0)
    parameters = list(network.parameters())
    gradients = [draw_gradient(parameter) for parameter in parameters]
    count = sum(parameter.numel() for parameter in parameters)
    optimizers = [make(parameter_groups(network, weight_decay=DECAY)) for make in OPTIMIZERS.values()]
    candidates = dict(zip(OPTIMIZERS, [optimizer.step for optimizer in optimizers], strict=True))

    seconds = interleaved(candidates | {"triad": in_place_triad(count)}, lambda: give(parameters, gradients), REPEATS)
    gigabytes_per_s = 3 * 4 * count / seconds.pop("triad") / 1e9
    print(f"{len(parameters)} tensors, {count:,} weights, {THREADS} threads, medians of {REPEATS}, interleaved\n")
    show(seconds, count, gigabytes_per_s)


def draw_gradient(parameter: Tensor) -> Tensor:
    """Normal noise of the parameter's shape and memory order."""
    return torch.randn_like(parameter).mul_(1e-3).detach()


@torch.no_grad()
def give(parameters: list[Tensor], gradients: list[Tensor]) -> None:
    """Copy the gradients into the parameters' own; before every step, since some optimizers write over them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(gradient)


def in_place_triad(count: int) -> Callable[[], Any]:
    """The step a ← a + s·b on arrays as large as the weights: reads a and b, writes a.

    In place, as an update is: what is written was read before, so that no traffic goes uncounted.
    """
    a, b = torch.rand(count), torch.rand(count)
    return lambda: a.add_(b, alpha=1e-3)


def interleaved(
    candidates: dict[str, Callable[[], Any]], between: Callable[[], None], repeats: int
) -> dict[str, float]:
    """The median time of each candidate in seconds, taken in turn so that other load falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            between()
            start_s = time.perf_counter()
            run()
            if repeat:  # the first round allocates
                taken[name].append(time.perf_counter() - start_s)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(seconds: dict[str, float], count: int, gigabytes_per_s: float) -> None:
    """The times beside the memory's floor: w, g and v are read, w and v are written."""
    floor_s = 5 * 4 * count / (gigabytes_per_s * 1e9)
    for name, taken in seconds.items():
        print(f"{name:42}{taken * 1e3:8.1f} ms{taken / floor_s:7.2f} of the memory's floor")
    print(f"{f'the memory, at {gigabytes_per_s:.1f} GB/s':42}{floor_s * 1e3:8.1f} ms\n")
    for name, aim in AIMS.items():
        ratio = seconds[OURS] / seconds[name]
        print(f"ours / {name:35}{ratio:8.2f}   aim: at most {aim}{'' if ratio <= aim else ', NOT MET'}")


if __name__ == "__main__":
    main()
