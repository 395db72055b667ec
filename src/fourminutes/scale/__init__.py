"""Predicting other sizes, from the plan and its records alone."""

from fourminutes.scale.costmodel import Link, Step, Workload, allreduce_time, step_time
from fourminutes.scale.simulate import simulate, simulate_plan

__all__ = ["Link", "Step", "Workload", "allreduce_time", "simulate", "simulate_plan", "step_time"]
