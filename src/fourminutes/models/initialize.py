"""How layers start: what the networks have in common."""

from __future__ import annotations

from torch import Generator, nn


def start_convolutions(model: nn.Module, generator: Generator) -> None:
    """Draw every kernel from N(0, 2 / fan-in), He's rule for what a ReLU follows, and set the biases to 0.

    The fan-in is kernel height x kernel width x input channels. The paper's authors scale by it too; torchvision's
    residual nets scale by the fan-out.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_norms(model: nn.Module) -> None:
    """Set every batch norm's γ to 1, its β to 0 and its running statistics to those of N(0, 1)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def start_linear(layer: nn.Linear, generator: Generator, *, sigma: float, bias: float = 0.0) -> None:
    """Draw the matrix from N(0, sigma²) and set the biases to `bias`."""
    nn.init.normal_(layer.weight, std=sigma, generator=generator)
    nn.init.constant_(layer.bias, bias)
