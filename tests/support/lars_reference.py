"""LARS's equations written out slowly in float64, and the tensors that tests hold our LARS against them with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

SHAPES = ((64, 32, 4, 4), (8, 4, 3, 3), (5, 7), (6,))  # the first is large enough for the update in one pass
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


def set_to(optimizer, rate):
    """The rate of all groups; in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def give(weights, gradients):
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()


def run(optimizer, weights, gradients_by_step, rates):
    for gradients, rate in zip(gradients_by_step, rates, strict=True):
        give(weights, gradients)
        set_to(optimizer, rate)
        optimizer.step()


def tensors(shapes, seed, scale=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(device) for shape in shapes]


def parameters(seed=0, shapes=SHAPES, device="cpu"):
    return [nn.Parameter(tensor) for tensor in tensors(shapes, seed, device=device)]


def in_numpy(tensor):
    """A float64 copy of its own."""
    return tensor.detach().cpu().double().numpy().copy()


def distance(tensor, expected):
    """Relative to the largest expected value."""
    return np.abs(in_numpy(tensor) - expected).max() / np.abs(expected).max()


def all_equal(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def rates_up_and_down(steps):
    """From 0 up to 3 and down again, with a 0 in the middle."""
    return [0.0 if step == steps // 2 else 3.0 * math.sin(math.pi * step / steps) ** 2 for step in range(steps)]
