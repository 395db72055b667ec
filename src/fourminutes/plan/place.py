"""How many processes, and where: common to training and to measuring."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fourminutes.plan.base import PlanModel


class PlacedPlan(PlanModel):
    """Something that runs as one process a device, on one node or several."""

    processes: int = Field(1, ge=1, description="processes in all, one a device")
    processes_per_node: int | None = Field(
        None, ge=1, description="processes on each node; null puts all of them on one"
    )
    threads: int = Field(1, ge=1, description="CPU threads a process, for computing")
    device: Literal["auto", "gpu"] = Field(
        "auto",
        description="what each process computes on: gpu asks Slurm for one, and runs on nothing else; auto takes a GPU "
        "where it finds one",
    )
    lost_after_s: float = Field(
        600,
        gt=0,
        description="time after which a process that has not come, gives no sign of life or keeps the others waiting "
        "is lost, and the others end, in seconds",
    )

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or self.processes

    @property
    def cores(self) -> int:
        """CPU cores a process."""
        return self.threads

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.processes // self.per_node

    @model_validator(mode="after")
    def _fills_nodes(self) -> Self:
        if self.processes % self.per_node:
            raise ValueError(f"processes {self.processes} is no multiple of processes_per_node {self.per_node}")
        return self
