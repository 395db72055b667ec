"""Training the runs and the sweeps of a plan, on one process a device."""

from fourminutes.train.run import train
from fourminutes.train.sweep import run_sweep
from fourminutes.train.tuning import tune_run

__all__ = ["run_sweep", "train", "tune_run"]
