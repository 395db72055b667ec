"""Training the runs and the sweeps of a plan, and timing their steps, on one process a device."""

from fourminutes.train.run import train
from fourminutes.train.scaling import measure_scaling
from fourminutes.train.sweep import run_sweep
from fourminutes.train.tuning import tune_run

__all__ = ["measure_scaling", "run_sweep", "train", "tune_run"]
