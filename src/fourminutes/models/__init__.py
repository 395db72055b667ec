"""The networks: AlexNet with batch norm, ResNet-50 and a small residual net, at any width and input size."""

from fourminutes.models.build import build_model

__all__ = ["build_model"]
