"""Training one run of a plan, on one process a device."""

from fourminutes.train.run import train

__all__ = ["train"]
