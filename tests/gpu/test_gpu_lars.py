"""LARS over all tensors at once, over ResNet-50's own tensors; small ones are in tests/unit/test_lars.py."""

from contextlib import contextmanager
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from support.lars_reference import both_variants, in_numpy, reference

from fourminutes.models import build_model
from fourminutes.optim import LARS, parameter_groups
from fourminutes.plan import ModelPlan

RATES = [0.0, 0.5, 2.0, 1.0]
ETA, DECAY = 0.001, 5e-5


@contextmanager
def waiting_refused():
    """Within this, a wait of the host for the device is an error."""
    with catch_warnings():
        simplefilter("ignore")  # torch warns that it may overlook one
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def gradients_of(weights, step):
    generator = torch.Generator(weights[0].device).manual_seed(step)
    return [
        torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator, device=weight.device)) * 1e-3
        for weight in weights
    ]


@both_variants
def test_follows_its_equations_over_resnet50_without_waiting_for_the_device(gpu, variant):
    """In the network's own memory order, with momentum, decay and adaptation by kind of parameter."""
    model = build_model(ModelPlan(name="resnet50"), 1000, seed=0).to(gpu)
    optimizer = LARS(
        parameter_groups(model, weight_decay=DECAY), lr=0.0, momentum=0.9, trust_coefficient=ETA, variant=variant
    )
    groups = {weight: group for group in optimizer.param_groups for weight in group["params"]}
    weights = list(model.parameters())
    assert len(weights) == len(groups) == 161
    start = [in_numpy(weight) for weight in weights]
    steps = [gradients_of(weights, step) for step in range(len(RATES))]
    with waiting_refused():
        for gradients, rate in zip(steps, RATES, strict=True):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    for number, weight in enumerate(weights):
        group = groups[weight]
        w, v = reference(
            start[number], [in_numpy(step[number]) for step in steps], RATES, variant=variant, mu=0.9,
            decay=group["weight_decay"], eta=ETA, eps=1e-9 if variant == "paper" else 0.0, adapt=group["adapt"],
        )  # fmt: skip
        velocity = in_numpy(optimizer.state[weight]["momentum_buffer"])
        assert np.abs(velocity - v).max() <= 1e-5 * np.abs(v).max()
        assert np.abs(in_numpy(weight) - w).max() <= 1e-6 * max(np.abs(w).max(), np.abs(v).max())


def test_both_forms_agree_on_the_gpu(gpu):
    """One by one, as on the CPU, and together, the default here; on tensors in channels_last too."""
    results = []
    for foreach in (False, True, None):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape, device=gpu)) for shape in ((64, 32, 3, 3), (1000, 64), (64,))]
        weights[0].data = weights[0].data.contiguous(memory_format=torch.channels_last)
        optimizer = LARS(weights, lr=0.7, weight_decay=0.01, foreach=foreach)
        for step in range(5):
            for weight, gradient in zip(weights, gradients_of(weights, step), strict=True):
                weight.grad = gradient
            optimizer.step()
        results.append(weights)
    assert all(torch.equal(together, default) for together, default in zip(*results[1:], strict=True))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
