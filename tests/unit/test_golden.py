"""Golden losses: five steps of every network, in every number format, as they were when they were written down.

They change with whatever changes the arithmetic of first weights, network or update, and with nothing else. Where that
is meant, write them again, and look at the difference before it is committed:

    python tests/unit/test_golden.py

A further number format is one more row of `PRECISIONS`, a further network one more of `NETWORKS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from fourminutes.files import write_text
from fourminutes.models import build_model
from fourminutes.optim import build_optimizer, set_rate
from fourminutes.plan import ModelPlan, OptimizerPlan, Precision
from fourminutes.train.loss_scale import LossScale
from fourminutes.train.precision import in_precision, uses_loss_scale

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses.json"
STEPS, IMAGES, CLASSES = 5, 8, 10
OPTIMIZER = OptimizerPlan(kind="lars", weight_decay=0.01)  # so much that five steps show it
RATE = 2.0

# Without dropout, whose masks torch draws by another library where there is no MKL.
ALEXNET = {"width": 0.125, "image_px": 64, "dropout": 0}
NETWORKS = {
    "alexnet": ModelPlan(name="alexnet", **ALEXNET),
    "alexnet_bn": ModelPlan(name="alexnet_bn", **ALEXNET),
    "alexnet_bn without bn5": ModelPlan(name="alexnet_bn", bn_after_pool5=False, **ALEXNET),
    "resnet50": ModelPlan(name="resnet50", width=0.125, image_px=64),
    "resnet_small": ModelPlan(name="resnet_small", image_px=32),
}


# The relative error that another CPU's kernels may cause: from SSE to AVX2, fp32 losses differ by 1e-6, bf16's by 3e-3.
PRECISIONS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 1e-2, "amp": 1e-2, "half": 5e-3, "half-lars": 5e-3}


def losses(model_plan: ModelPlan, precision: Precision) -> list[float]:
    """The loss of each of five steps of LARS on one and the same batch, in nats, before the step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, model_plan.image_px, model_plan.image_px, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    model = build_model(model_plan, CLASSES, seed=0)
    network = in_precision(model, precision, torch.device("cpu"))
    optimizer = build_optimizer(model, OPTIMIZER)
    set_rate(optimizer, RATE)
    scale = LossScale(256.0 if uses_loss_scale(precision) else 1.0)
    series = []
    for _ in range(STEPS):
        loss = cross_entropy(network(images), labels)
        optimizer.zero_grad()
        scale.scaled(loss).backward()
        assert scale.unscale_(weight.grad for weight in model.parameters())
        optimizer.step()
        series.append(loss.item())
    return series


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this, torch has one thread: several add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows() -> list[tuple[str, Precision]]:
    return [(network, precision) for network in NETWORKS for precision in PRECISIONS]


@pytest.mark.parametrize(("network", "precision"), rows())
def test_the_losses_are_those_written_down(network, precision):
    golden = json.loads(GOLDEN.read_text())[network][precision]
    with one_thread():
        measured = losses(NETWORKS[network], precision)
    assert measured == pytest.approx(golden, rel=PRECISIONS[precision])


def test_a_row_is_written_down_for_each_network_and_precision_and_no_other():
    golden = json.loads(GOLDEN.read_text())
    assert [(network, precision) for network, kinds in golden.items() for precision in kinds] == rows()


def write_golden() -> None:
    with one_thread():
        table = {
            network: {precision: [round(loss, 6) for loss in losses(plan, precision)] for precision in PRECISIONS}
            for network, plan in NETWORKS.items()
        }
    write_text(GOLDEN, json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    write_golden()
