"""The report's figures by name."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from fourminutes.report import (
    figures_claims,
    figures_p40,
    figures_paper,
    figures_profile,
    figures_rates,
    figures_runs,
    figures_scale,
    figures_scaling,
    figures_steps,
    figures_validation,
)
from fourminutes.report.evidence import Evidence

BUILDERS: dict[str, Callable[[Evidence], Figure]] = {
    "batch-size": figures_claims.batch_size,
    "tuning": figures_claims.tuning,
    "accuracy": figures_runs.accuracy,
    "time-split": figures_runs.time_split,
    "allreduce": figures_runs.allreduce,
    "overlap": figures_steps.overlap,
    "ablations": figures_paper.ablations,
    "half-precision": figures_paper.half_precision,
    "steps": figures_paper.steps,
    "throughput": figures_rates.throughput,
    "efficiency": figures_rates.efficiency,
    "scaling-measured": figures_scaling.measured_scaling,
    "profile": figures_profile.profile,
    "validation": figures_validation.validation,
    "p40": figures_p40.p40,
    "scalability": figures_scale.scalability,
    "systems": figures_scale.systems,
}
