"""The whole examination: which looks there are, and what each needs to know."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fourminutes.doctor.archives import look_at_archives
from fourminutes.doctor.cluster import cluster_findings
from fourminutes.doctor.devices import list_gpus, look_at_devices, usable_cores
from fourminutes.doctor.disks import existing, look_at_disks
from fourminutes.doctor.duration import look_at_duration, records_in
from fourminutes.doctor.finding import Examination, Finding, Findings
from fourminutes.doctor.jobs import Here, job_findings
from fourminutes.doctor.locks import look_at_locks
from fourminutes.doctor.needs import jobs_of, needs_pictures
from fourminutes.doctor.nodes import STEP_LIMIT_S, file_times, look_at_nodes
from fourminutes.doctor.probe import Examiner, look_at_all
from fourminutes.doctor.profile import Profile, read_profile
from fourminutes.doctor.slurm import ask_slurm
from fourminutes.doctor.software import look_at_software
from fourminutes.errors import UserError
from fourminutes.plan import Plan, find_plan, load_plan
from fourminutes.plan.reading import read_mapping
from fourminutes.record import RunRecord, provenance

_PARAMS = Path("params.yaml")
_RESULTS = Path("results")


@dataclass(frozen=True)
class Question:
    """What is asked of the doctor.

    Attributes:
        plan_file: of the plan; None for the one that params.yaml names, if that is there.
        cluster: whether nodes of a cluster are asked, which takes a step of Slurm.
        checksums: whether archives are read to their ends.
        fix: whether what has one clear remedy is mended.
        clone: the project's folder, in which this runs.
    """

    plan_file: Path | None = None
    cluster: bool = True
    checksums: bool = False
    fix: bool = False
    clone: Path = Path()


def examine(question: Question) -> Examination:
    """Look at everything; nothing that is broken raises, it becomes a finding."""
    plan, plan_file, of_plan = _plan_of(question)
    found = [*of_plan, *look_at_all(_examiners(question, plan))]
    return Examination(
        plan=str(plan_file) if plan_file else None,
        can_run=all(finding.mark != "missing" for finding in found),
        findings=tuple(found),
        provenance=provenance(),
    )


def _plan_of(question: Question) -> tuple[Plan | None, Path | None, list[Finding]]:
    """The plan that is held against this machine, its file, and what is wrong with them."""
    findings = Findings("plan")
    plan_file = question.plan_file
    try:
        if plan_file is None and _PARAMS.is_file():
            plan_file = find_plan(str(read_mapping(_PARAMS, "the plan's name").get("plan")))
        if plan_file is None:
            return None, None, []
        plan = load_plan(plan_file)
    except UserError as error:
        findings.add_error("missing", "plan", error)
        return None, plan_file, findings.all
    parts = [f"{len(plan.runs)} runs"] * bool(plan.runs) + [f"{len(plan.sweeps)} sweeps"] * bool(plan.sweeps)
    findings.add("ok", "plan", f"{plan.name}: {', '.join(parts) or 'only draws'}")
    return plan, plan_file, findings.all


def _examiners(question: Question, plan: Plan | None) -> list[Examiner]:
    """Every look, in the order in which findings are shown."""
    clone = question.clone.absolute()
    examiners = [
        Examiner("software", lambda: _software(clone, plan), limit_s=150),
        Examiner("devices", lambda: look_at_devices(*list_gpus())),
        Examiner("slurm", lambda: _slurm(question, plan), limit_s=STEP_LIMIT_S + 90),
        Examiner("shared files", lambda: file_times(_folders(clone, plan)), limit_s=30),
        Examiner("file systems", lambda: _disks(clone, plan)),
        Examiner("file systems", lambda: look_at_locks(clone, fix=question.fix)),
    ]
    if plan and plan.data:
        look = _archives(plan, checksums=question.checksums)
        examiners.append(Examiner("archives", look, limit_s=None if question.checksums else 60))
    if plan and (plan.runs or plan.sweeps):
        examiners.append(Examiner("duration", lambda: _duration(clone, plan)))
    return examiners


def _software(clone: Path, plan: Plan | None) -> list[Finding]:
    trains = plan is not None and bool(plan.runs or plan.sweeps or plan.comm)
    return look_at_software(trains=trains, makes=plan is not None, gpus=list_gpus()[0], lock_folder=clone)


def _slurm(question: Question, plan: Plan | None) -> list[Finding]:
    """Slurm, the jobs, and last the nodes, so that the step which asks them takes none that a job could have."""
    clone = question.clone.absolute()
    findings = Findings("slurm")
    profile = _profile(clone, findings)
    jobs = jobs_of(plan)
    cluster = ask_slurm()
    here = Here(usable_cores(), len(list_gpus()[0]))
    findings.all[:0] = cluster_findings(cluster, profile, jobs)
    findings.all += job_findings(jobs, here, cluster, profile)
    if question.cluster and cluster is not None and cluster.answers:
        needed = any(job.nodes > 1 for job in jobs)
        findings.all += look_at_nodes(cluster, profile, _folders(clone, plan), needed=needed)
    return findings.all


def _folders(clone: Path, plan: Plan | None) -> list[Path]:
    """Those that are written to, as far as they are there and can be."""
    wanted = [clone, *([plan.data.root] if plan and plan.data else []), *([plan.work] if plan else [])]
    folders = dict.fromkeys(existing(folder).resolve() for folder in wanted)
    return [folder for folder in folders if os.access(folder, os.W_OK)]


def _disks(clone: Path, plan: Plan | None) -> list[Finding]:
    return look_at_disks(clone, plan, records_in(_RESULTS, "*/runs/*.json", RunRecord).values())


def _archives(plan: Plan, *, checksums: bool) -> Callable[[], list[Finding]]:
    data = plan.data
    return lambda: look_at_archives(data, needed=needs_pictures(plan), checksums=checksums) if data else []


def _duration(clone: Path, plan: Plan) -> list[Finding]:
    gpus, _ = list_gpus()
    here = gpus[0].name if gpus else provenance().cpu
    return look_at_duration(plan, _RESULTS, _profile(clone), here)


def _profile(clone: Path, findings: Findings | None = None) -> Profile:
    """The Slurm profile; an empty one where it cannot be read, which is noted in `findings`."""
    try:
        return read_profile(clone)
    except UserError as error:
        if findings:
            findings.add_error("note", "profile", error)
        return Profile()
