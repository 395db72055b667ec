"""Where the plan's jobs can run: on this machine, or on Slurm as the profile submits them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from fourminutes.doctor.finding import Finding, Findings, Mark, duration, some
from fourminutes.doctor.needs import Job
from fourminutes.doctor.profile import PROFILE, Profile
from fourminutes.doctor.slurm import Cluster, Node, Partition

_OTHER_SIZE = "change processes, processes_per_node or threads in the plan"


@dataclass(frozen=True)
class Here:
    """This machine: what its processes share."""

    cores: float
    gpus: int


class Place(NamedTuple):
    """How a job fares at one place."""

    mark: Mark
    found: str
    to_do: str | None = None


def job_findings(jobs: tuple[Job, ...], here: Here, cluster: Cluster | None, profile: Profile) -> list[Finding]:
    """A finding for every kind of job that the plan has: those that ask for the same.

    What can run at one of the two places can run; what Slurm would never start is worth a warning all the same.
    """
    findings = Findings("jobs")
    for names, job in _kinds(jobs):
        on_slurm = cluster is not None and cluster.answers
        places = [on_this_machine(job, here), *([on_cluster(job, cluster, profile)] if cluster and on_slurm else [])]
        best = min(places, key=lambda place: _ORDER.index(place.mark))
        worst = places[-1] if places[-1].mark == "missing" else best
        mark: Mark = "warn" if worst.mark == "missing" and best.mark != "missing" else best.mark
        found = f"{_asked(job)}: {'; '.join(place.found for place in places)}"
        findings.add(mark, names, found, None if mark == "ok" else worst.to_do)
    return findings.all


_ORDER: tuple[Mark, ...] = ("ok", "note", "warn", "missing")


def on_this_machine(job: Job, here: Here) -> Place:
    """How the job fares without Slurm."""
    if job.nodes > 1:
        to_do = "run it on Slurm, or set processes_per_node: null to have all processes on one node"
        return Place("missing", "not here, on one node", to_do)
    if job.gpus > here.gpus:
        return Place("missing", f"not here, with {here.gpus} GPUs", "run it where there are more, or set device: auto")
    if here.gpus and job.per_node > here.gpus:
        to_do = "set processes to the number of GPUs, or hide them with CUDA_VISIBLE_DEVICES="
        return Place("missing", f"not here, with {here.gpus} GPUs", to_do)
    if job.node_cores > here.cores:
        return Place("warn", f"here processes take turns on {here.cores:g} cores", _OTHER_SIZE)
    return Place("ok", "runs here")


def on_cluster(job: Job, cluster: Cluster, profile: Profile) -> Place:
    """How the job fares on Slurm, in the partition that the profile names."""
    partition = cluster.partition(profile.resource(job.rule, "slurm_partition"))
    if partition is None:
        return Place("missing", "on Slurm in no partition", f"set slurm_partition in {PROFILE}")
    for found, to_do in _misfits(job, partition, profile):
        return Place("missing", f"never starts in partition {partition.name}: {found}", to_do)
    if _fits_now(job, partition, profile):
        return Place("ok", f"could start in partition {partition.name} at once")
    return Place("note", f"waits for nodes in partition {partition.name}")


def _misfits(job: Job, partition: Partition, profile: Profile) -> Iterator[tuple[str, str]]:
    """Why the job can never start in the partition, each with what to do."""
    runtime_min = profile.number(job.rule, "runtime")
    if runtime_min and partition.limit_min is not None and runtime_min > partition.limit_min:
        found = f"its runtime of {duration(runtime_min)} is over the {duration(partition.limit_min)} there"
        yield found, f"lower runtime in {PROFILE}, or name another partition"
    if partition.max_nodes is not None and job.nodes > partition.max_nodes:
        yield f"a job may have {partition.max_nodes} nodes", "lower processes, or name another partition"
    large = [node for node in partition.nodes if _is_large_enough(node, job, profile)]
    working = [node for node in large if node.works]
    wanted = f"of its {len(partition.nodes)} nodes {len(large)} have {_wanted(job, profile)}"
    if len(large) < job.nodes:
        yield wanted, f"{_OTHER_SIZE}, or mem_mb_per_cpu and slurm_extra in {PROFILE}"
    if len(working) < job.nodes:
        yield f"{wanted}, and {len(working)} of those work", f"wait for the others, or {_OTHER_SIZE}"


def _fits_now(job: Job, partition: Partition, profile: Profile) -> bool:
    """Whether enough nodes are free; one that is taken in part counts by its CPUs, where no GPUs are asked for."""
    by_cpus = _gpus(job, profile) == 0
    free = [
        node
        for node in partition.nodes
        if node.works and (node.is_idle or (by_cpus and node.idle_cpus >= job.node_cores))
        if _is_large_enough(node, job, profile)
    ]
    return partition.is_up and len(free) >= job.nodes


def _is_large_enough(node: Node, job: Job, profile: Profile) -> bool:
    return (
        node.cpus >= job.node_cores
        and node.memory_mb >= profile.memory_mb(job.rule, job.node_cores)
        and node.gpus >= _gpus(job, profile)
    )


def _gpus(job: Job, profile: Profile) -> int:
    """GPUs that the job asks for on each node."""
    in_profile = profile.gpus_per_node(job.rule)
    return job.gpus if in_profile is None else in_profile


def _wanted(job: Job, profile: Profile) -> str:
    gpus = _gpus(job, profile)
    words = [f"{job.node_cores} CPUs", f"{profile.memory_mb(job.rule, job.node_cores) / 1024:.1f} GiB"]
    return " and ".join([*words, *([f"{gpus} GPUs"] if gpus else [])])


def _kinds(jobs: tuple[Job, ...]) -> Iterator[tuple[str, Job]]:
    """Jobs that ask for the same, by the names of the first of them, and one of them."""

    def asked(job: Job) -> tuple[str, int, int, int, int]:
        return job.rule, job.nodes, job.per_node, job.cores, job.gpus

    for _, group in groupby(sorted(jobs, key=asked), key=asked):
        alike = list(group)
        yield some([job.name for job in alike], shown=1), alike[0]


def _asked(job: Job) -> str:
    nodes = f"{job.nodes} nodes of " if job.nodes > 1 else ""
    gpu = " and a GPU" if job.gpus else ""
    return f"{nodes}{job.per_node} x {job.cores} cores{gpu}"
