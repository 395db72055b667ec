"""The networks: AlexNet with and without batch norm, ResNet-50 and a small residual net, at any width and side."""

from fourminutes.models.build import build_model

__all__ = ["build_model"]
