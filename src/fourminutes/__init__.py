"""Training ImageNet in Four Minutes, as a reproducible workflow."""

__version__ = "0.1.0"
