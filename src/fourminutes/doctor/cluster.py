"""Slurm's state: whether it answers, what it has, and whether what the profile names is there."""

from __future__ import annotations

import getpass
import os
from collections import Counter

from fourminutes.doctor.finding import Finding, Findings, Mark, duration, some
from fourminutes.doctor.needs import Job
from fourminutes.doctor.probe import ask
from fourminutes.doctor.profile import FOUND_OUT, PROFILE, Profile
from fourminutes.doctor.slurm import Cluster, Node

_SHOWN = 4


def cluster_findings(cluster: Cluster | None, profile: Profile, jobs: tuple[Job, ...]) -> list[Finding]:
    """What there is of Slurm.

    Args:
        cluster: from `ask_slurm`.
        profile: what Snakemake submits jobs with.
        jobs: of the plan; those of several nodes need Slurm.
    """
    findings = Findings("slurm")
    several = [job.name for job in jobs if job.nodes > 1]
    lacking: Mark = "missing" if several else "note"
    if cluster is None:
        what = f"needed by {some(several)}" if several else "only plans with several nodes need it"
        way_out = "run this where sinfo is, or set processes_per_node: null to have all processes on one node"
        findings.add(lacking, "Slurm", f"its commands are not here; {what}", way_out if several else None)
    elif not cluster.answers:
        what = f"{cluster.version}: the controller does not answer: {cluster.complaint}"
        findings.add("missing" if several else "warn", "Slurm", what, "ask `scontrol ping`, and who runs the cluster")
    else:
        _add_slurm(findings, cluster, profile)
        _add_partitions(findings, cluster)
        _add_profile(findings, cluster, profile, jobs)
    return findings.all


def _add_slurm(findings: Findings, cluster: Cluster, profile: Profile) -> None:
    name = cluster.config.get("ClusterName", "")
    findings.add("ok", "Slurm", f"{cluster.version}, cluster {name or 'without a name'}, the controller answers")
    if job := os.environ.get("SLURM_JOB_ID"):
        findings.add("note", "job", f"this runs inside of job {job}", "start snakemake on a login node, not in a job")
    _add_accounting(findings, cluster, profile)
    by_cluster = cluster.config.get("JobRequeue") == "1"
    if by_cluster if profile.requeue is None else profile.requeue:
        findings.add("ok", "requeueing", "a job that is interrupted is started again")
    else:
        what = "a job that is preempted, or whose node fails, is not started again, by the profile or the cluster"
        findings.add("note", "requeueing", what, f"set in {PROFILE}: slurm-requeue: true")


def _add_accounting(findings: Findings, cluster: Cluster, profile: Profile) -> None:
    """Whether Snakemake asks after its jobs in a way that answers."""
    asks = profile.status_command
    if cluster.accounting:
        findings.add("ok", "accounting", f"sacct answers; slurm-status-command: {asks or 'sacct, by default'}")
    elif asks in ("squeue", FOUND_OUT):
        findings.add("ok", "accounting", "none, and the profile has Snakemake ask squeue")
    else:
        what = "sacct does not answer, so Snakemake would never learn that a job has ended"
        findings.add("warn", "accounting", what, f"say in {PROFILE}: slurm-status-command: squeue")


def _add_partitions(findings: Findings, cluster: Cluster) -> None:
    for partition in cluster.partitions:
        states = Counter(node.state for node in partition.nodes)
        counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
        limit = "no time limit" if partition.limit_min is None else f"{duration(partition.limit_min)} at most"
        default = " (default)" if partition.is_default else ""
        what = f"{len(partition.nodes)} nodes: {counted}; each {_each(partition.nodes)}; {limit}{default}"
        subject = f"partition {partition.name}"
        if partition.is_up:
            findings.add("ok", subject, what)
        else:
            findings.add("warn", subject, f"takes no jobs; {what}", "name another one in the profile")
    out_of_work = {node.name: node for partition in cluster.partitions for node in partition.nodes if not node.works}
    for node in list(out_of_work.values())[:_SHOWN]:
        what = f"{node.state}: {node.reason or 'nobody said why'}"
        findings.add("warn", f"node {node.name}", what, f"`scontrol show node {node.name}`; tell who runs the cluster")
    if len(out_of_work) > _SHOWN:
        findings.add("warn", "nodes", f"{len(out_of_work) - _SHOWN} more take no jobs", "`sinfo -R` lists them")


def _each(nodes: tuple[Node, ...]) -> str:
    """What a node has, of the smallest and the largest."""

    def span(values: list[int]) -> str:
        return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

    gpus = [node.gpus for node in nodes]
    memory = [round(node.memory_mb / 1024) for node in nodes]
    words = [f"{span([node.cpus for node in nodes])} CPUs", f"{span(memory)} GiB"]
    return ", ".join(words + ([f"{span(gpus)} GPUs"] if any(gpus) else []))


def _add_profile(findings: Findings, cluster: Cluster, profile: Profile, jobs: tuple[Job, ...]) -> None:
    """Whether the partition and the account that the profile names are there, and GPUs asked for."""
    wrong: Mark = "missing" if any(job.nodes > 1 for job in jobs) else "warn"
    named = profile.resource("", "slurm_partition")
    partition = cluster.partition(named)
    if partition is None:
        known = ", ".join(partition.name for partition in cluster.partitions)
        what = f"no partition {named}" if named else "no default partition, and the profile names none"
        findings.add(wrong, "profile", f"{what}; there are: {known}", f"set slurm_partition in {PROFILE}")
    else:
        findings.add("ok", "profile", f"partition {named}" if named else "partition: the default one")
        asks = any(profile.gpus_per_node(job.rule) or job.gpus for job in jobs)
        if jobs and not asks and any(node.gpus for node in partition.nodes):
            what = f"nodes of {partition.name} have some, and no job of the plan asks for any"
            findings.add("note", "GPUs", what, "set device: gpu in the plan's defaults and comm")
    account = profile.resource("", "slurm_account")
    if account and cluster.accounting:
        query = ("show", "associations", f"users={getpass.getuser()}", "format=account")
        said = ask("sacctmgr", "--noheader", "--parsable2", *query)
        accounts = sorted(set(said.stdout.split()))
        if said.is_good and accounts and account not in accounts:
            what = f"no account {account} for you; there are: {', '.join(accounts)}"
            findings.add(wrong, "profile", what, f"set slurm_account in {PROFILE}")
