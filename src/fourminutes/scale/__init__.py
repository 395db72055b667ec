"""Predicting other sizes, from the plan and its records alone."""

from fourminutes.scale.network import Link, Network, Part
from fourminutes.scale.simulate import simulate, simulate_plan
from fourminutes.scale.step import Compute, Step, simulate_step

__all__ = ["Compute", "Link", "Network", "Part", "Step", "simulate", "simulate_plan", "simulate_step"]
