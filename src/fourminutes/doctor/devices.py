"""This machine: cores, memory, GPUs, limits."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from fourminutes.doctor.finding import Finding, Findings
from fourminutes.doctor.probe import ask

_FEW_FILES = 1024
_SMALL_SHM = 64 * 2**20  # bytes; what containers give by default
_GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver lists it."""

    name: str
    driver: str
    memory_mib: int | None
    capability: tuple[int, int] | None
    """None from drivers that don't tell."""


def list_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs here, and what `nvidia-smi` has to complain of; none and None where there is no such command."""
    if shutil.which("nvidia-smi") is None:
        return (), None
    for fields in ("name,driver_version,memory.total,compute_cap", "name,driver_version,memory.total"):
        answer = ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        if answer.is_good:
            return parse_gpus(answer.stdout), None
    return (), answer.complaint if answer.stderr else " ".join(answer.stdout.split()) or answer.complaint


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """The GPUs of a listing of `nvidia-smi --format=csv,noheader,nounits`.

    Its columns are name, driver_version, memory.total, and from newer drivers compute_cap.
    """
    gpus = []
    for line in listing.splitlines():
        name, driver, memory, *rest = [field.strip() for field in line.split(",")] + [""] * 3
        major, _, minor = rest[0].partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        if name:
            gpus.append(Gpu(name, driver, int(memory) if memory.isdigit() else None, capability))
    return tuple(gpus)


def look_at_devices(gpus: tuple[Gpu, ...], complaint: str | None) -> list[Finding]:
    """What this machine has.

    Args:
        gpus: from `list_gpus`, as is `complaint`.
        complaint: what the driver's tool had against the question.
    """
    findings = Findings("devices")
    cores = usable_cores()
    findings.add("ok", "CPU", f"{cores:g} cores usable, {_memory()}")
    if complaint is not None:
        findings.add("warn", "GPUs", f"nvidia-smi: {complaint}", "have the driver looked at; until then CPUs are used")
    elif gpus:
        kinds = sorted({gpu.name for gpu in gpus})
        counted = ", ".join(f"{sum(gpu.name == kind for gpu in gpus)} x {kind}" for kind in kinds)
        findings.add("ok", "GPUs", f"{counted}, driver {gpus[0].driver}")
    else:
        findings.add("note", "GPUs", "none; training runs on the CPU")
    _add_limits(findings)
    return findings.all


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or the control group's share where that is less."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def _memory() -> str:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[key].split()[0]) * 1024 / _GIB for key in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GiB memory, {available:.1f} of it available"


def _add_limits(findings: Findings) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    says = f"{soft} (hard {hard})" if soft != resource.RLIM_INFINITY else "unlimited"
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        findings.add("warn", "open files", says, f"`ulimit -n {_FEW_FILES}` or more before the start")
    else:
        findings.add("ok", "open files", says)
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    size = shm.f_blocks * shm.f_frsize if shm else 0
    if size <= _SMALL_SHM:
        what = f"{size / 2**20:.0f} MiB; NCCL's processes of one host talk through it"
        findings.add("warn", "/dev/shm", what, "start the container with --shm-size=1g or --ipc=host")
    else:
        findings.add("ok", "/dev/shm", f"{size / _GIB:.1f} GiB")
