"""What profiles/slurm/profile.yaml asks of Slurm, as far as it can be read without Snakemake."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourminutes.plan.reading import read_mapping

PROFILE = Path("profiles/slurm/profile.yaml")
FOUND_OUT = "found out"


@dataclass(frozen=True)
class Profile:
    """The profile's settings.

    Attributes:
        status_command: of the Slurm plugin; None where it is left to it, FOUND_OUT where the profile looks for sacct.
        requeue: whether Slurm may start jobs again; None leaves that to the cluster.
        default: resources of every job.
        of_rule: resources by rule, which win.
    """

    status_command: str | None = None
    requeue: bool | None = None
    default: dict[str, Any] = field(default_factory=dict)
    of_rule: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resource(self, rule: str, key: str) -> str | None:
        """A resource of the rule's jobs as text, without the quotes that keep Snakemake from evaluating it."""
        value = self.of_rule.get(rule, {}).get(key, self.default.get(key))
        return None if value is None else str(value).strip().strip("'\"")

    def number(self, rule: str, key: str) -> float | None:
        """A resource that is a number; None where it is none, such as an expression."""
        try:
            return float(self.resource(rule, key) or "")
        except ValueError:
            return None

    def memory_mb(self, rule: str, cores: int) -> float:
        """Memory that the rule's jobs of so many cores a node ask for on each node, in MB; as the plugin takes it."""
        per_core = self.number(rule, "mem_mb_per_cpu")
        return per_core * cores if per_core else self.number(rule, "mem_mb") or 0

    def gpus_per_node(self, rule: str) -> int | None:
        """GPUs that the profile asks for on each node in place of what the plan wants; None where it says nothing."""
        if "slurm_extra" not in self.of_rule.get(
            rule, {}
        ):  # the rules have one of their own, which wins over default's
            return None
        asked = re.search(
            r"--(?:gpus-per-node|gres)[= ]\S*?(\d+)(?:['\"\s,]|$)", self.resource(rule, "slurm_extra") or ""
        )
        return int(asked[1]) if asked else 0


def read_profile(folder: Path) -> Profile:
    """The Slurm profile of the clone at `folder`.

    Raises:
        UserError: it is not there, or is not YAML.
    """
    raw = read_mapping(folder / PROFILE, "Snakemake's profile for Slurm")
    default, of_rule = raw.get("default-resources"), raw.get("set-resources")
    return Profile(
        status_command=_status_command(raw),
        requeue=_may_requeue(raw),
        default=_mapping(default),
        of_rule={str(rule): _mapping(resources) for rule, resources in _mapping(of_rule).items()},
    )


def _status_command(raw: dict[str, Any]) -> str | None:
    """How Snakemake asks after its jobs; an expression, as YTE has them, chooses by what there is."""
    value = raw.get("slurm-status-command")
    return FOUND_OUT if str(value).startswith("?") else value


def _may_requeue(raw: dict[str, Any]) -> bool | None:
    if raw.get("slurm-no-requeue") is True:
        return False
    return True if raw.get("slurm-requeue") is True else None


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping, or Snakemake's other form of one: a list of ``key=value``."""
    if isinstance(value, list):
        pairs = (str(item).partition("=") for item in value)
        return {key: content for key, _, content in pairs}
    return value if isinstance(value, dict) else {}
