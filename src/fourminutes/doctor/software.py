"""Python, the project, torch, DALI, Snakemake and DVC: which are here, and whether they go together."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fourminutes.doctor.devices import Gpu
from fourminutes.doctor.finding import Finding, Findings, Mark, some
from fourminutes.doctor.probe import ask
from fourminutes.record import code

# Oldest driver by CUDA's major version: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
_DALI = "nvidia-dali-cuda"
_SETUP = "`make setup`"
_OLDER_CUDA = "`make setup CUDA=12`"
_WORKFLOW = {"Snakemake": "snakemake", "Slurm plugin": "snakemake-executor-plugin-slurm", "DVC": "dvc"}
_IMPORT_LIMIT_S = 60


def look_at_software(*, trains: bool, makes: bool, gpus: tuple[Gpu, ...], lock_folder: Path) -> list[Finding]:
    """What is installed, and whether it goes together and with the GPUs.

    Args:
        trains: whether the plan needs torch and DALI.
        makes: whether there is a plan, which needs Snakemake.
        gpus: as the driver lists them.
        lock_folder: the clone's root, where the lock files lie.
    """
    findings = Findings("software")
    installed = installed_versions()
    _add_python(findings)
    _add_project(findings, installed)
    torch = _add_imported(findings, "torch", needed=trains)
    _add_imported(findings, "dali", needed=trains)
    dali = [name.removeprefix(_DALI) for name in installed if name.startswith(_DALI)]
    if torch is not None:
        findings.all += torch_findings(torch, gpus, dali_cuda=dali[0] if dali else None)
    for subject, package in _WORKFLOW.items():
        if package in installed:
            findings.add("ok", subject, installed[package])
        else:
            findings.add("missing" if makes and package == "snakemake" else "note", subject, "is not installed", _SETUP)
    _add_lock(findings, installed, lock_folder)
    return findings.all


def torch_findings(torch: Mapping[str, Any], gpus: tuple[Gpu, ...], dali_cuda: str | None) -> list[Finding]:
    """Whether torch's build goes with the driver, the cards and DALI.

    Args:
        torch: what `fourminutes.doctor.imported` says.
        gpus: as the driver lists them.
        dali_cuda: CUDA of the installed DALI, as its package's name has it, such as ``130``; None without DALI.
    """
    findings = Findings("software")
    build = torch["cuda"]
    if build is None:
        if gpus:
            what = f"torch {torch['version']} is a build for CPUs, beside {len(gpus)} GPUs"
            findings.add(
                "warn", "torch's build", what, f"install the lock's torch from where it is built for CUDA, {_SETUP}"
            )
        return findings.all
    major = int(build.split(".")[0])
    if dali_cuda is not None and gpus and dali_cuda[:2] != str(major):
        what = f"DALI is built for CUDA {dali_cuda[:2]}, torch for CUDA {build}"
        findings.add("warn", "torch and DALI", what, f"install both from one lock: {_SETUP} or {_OLDER_CUDA}")
    if gpus:
        _add_driver(findings, major, gpus[0].driver)
        _add_cards(findings, torch, gpus)
    return findings.all


def _add_driver(findings: Findings, major: int, driver: str) -> None:
    oldest = OLDEST_DRIVER.get(major)
    here = re.match(r"\d+", driver)
    if oldest is None or here is None or int(here[0]) >= oldest:
        return
    other = f", or {_OLDER_CUDA}" if major > 12 and int(here[0]) >= OLDEST_DRIVER[12] else ""
    what = f"driver {driver} is older than {oldest}, which torch's CUDA {major} needs"
    findings.add("missing", "driver", what, f"have it updated{other}, or hide the GPUs with CUDA_VISIBLE_DEVICES=")


def _add_cards(findings: Findings, torch: Mapping[str, Any], gpus: tuple[Gpu, ...]) -> None:
    """Compare the cards' capabilities with those that torch is built for."""
    built = [(int(match[1]), int(match[2])) for match in map(_ARCHITECTURE.match, torch["architectures"]) if match]
    cards = {(gpu.name, gpu.capability) for gpu in gpus if gpu.capability}
    cards |= {(gpu["name"], (gpu["capability"][0], gpu["capability"][1])) for gpu in torch["gpus"]}
    for name, capability in sorted(cards):
        if built and capability < min(built):
            here, oldest = (".".join(map(str, each)) for each in (capability, min(built)))
            what = f"{name} has capability {here}; torch is built from {oldest} on"
            findings.add("missing", "torch and GPU", what, f"{_OLDER_CUDA} (CUDA 13 dropped Pascal and Volta)")
    if len(torch["gpus"]) != len(gpus):
        what = f"torch sees {len(torch['gpus'])} of the {len(gpus)} GPUs"
        findings.add("warn", "torch and GPU", what, "look at CUDA_VISIBLE_DEVICES, and at `nvidia-smi` for errors")


_ARCHITECTURE = re.compile(r"sm_(\d+)(\d)")


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by its normalised name."""
    names = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {canonicalize_name(name): version for name, version in names if name}


def unlike_lock(lock: str, installed: Mapping[str, str]) -> list[str]:
    """The packages whose version is not the locked one, as ``torch 2.11.0 (locked 2.13.0)``.

    Args:
        lock: text of the lock: a line ``name==version`` each, and comments.
        installed: versions by normalised name; local parts of them, such as ``+cpu``, don't count.
    """
    unlike = []
    for line in lock.splitlines():
        try:
            wanted = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:
            continue
        here = installed.get(canonicalize_name(wanted.name))
        if here is None:
            unlike.append(f"{wanted.name} missing (locked {str(wanted.specifier).removeprefix('==')})")
        elif not wanted.specifier.contains(_public(here), prereleases=True):
            unlike.append(f"{wanted.name} {here} (locked {str(wanted.specifier).removeprefix('==')})")
    return unlike


def _public(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def _add_python(findings: Findings) -> None:
    version = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        findings.add("ok", "Python", version)
    else:
        findings.add(
            "missing", "Python", version, "make .venv with 3.11 or 3.12: make setup PYTHON=/path/to/python3.11"
        )


def _add_project(findings: Findings, installed: Mapping[str, str]) -> None:
    commit, is_dirty = code()
    where = "git knows no commit" if commit is None else f"commit {commit[:12]}{', with changes' if is_dirty else ''}"
    findings.add("ok", "fourminutes", f"{installed.get('fourminutes', 'not installed')}, {where}")


def _add_imported(findings: Findings, name: str, *, needed: bool) -> dict[str, Any] | None:
    """Import `name` in a process of its own; what it says, or None."""
    subject = {"torch": "torch", "dali": "DALI"}[name]
    answer = ask(sys.executable, "-m", "fourminutes.doctor.imported", name, limit_s=_IMPORT_LIMIT_S)
    try:
        said: dict[str, Any] = json.loads(answer.stdout)
    except ValueError:
        mark: Mark = "missing" if needed else "note"
        findings.add(mark, subject, f"cannot be imported: {answer.complaint}", f"{_SETUP}, or {_OLDER_CUDA}")
        return None
    words = [said["version"]]
    if name == "torch":
        words.append(f"CUDA {said['cuda']}" if said["cuda"] else "for CPUs")
        words += [f"NCCL {said['nccl']}"] if said["nccl"] else []
    findings.add("ok", subject, ", ".join(words))
    return said


def _add_lock(findings: Findings, installed: Mapping[str, str], folder: Path) -> None:
    older = f"{_DALI}120" in installed
    lock = folder / ("requirements-cuda12.lock" if older else "requirements.lock")
    try:
        unlike = unlike_lock(lock.read_text(), installed)
    except OSError as error:
        findings.add("note", "lock", f"{lock}: cannot be read: {error.strerror}", "run this in the clone's root")
        return
    if not unlike:
        findings.add("ok", "lock", f"all versions are those of {lock.name}")
        return
    what = f"not as in {lock.name}: {some(unlike)}"
    findings.add("note", "lock", what, _OLDER_CUDA if older else _SETUP)
