"""Who am I among the processes: one resolver of rank, sizes and meeting point, under Slurm, torchrun or alone."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fourminutes.errors import UserError

LauncherName = Literal["slurm", "torchrun", "alone"]

# Below Linux's ephemeral ports (32768 and up), above the well-known services.
LISTENING_PORTS = range(15_000, 25_000)
# Steps of one job may run side by side: far apart, so that neighbouring job ids don't meet them.
_PORTS_BETWEEN_STEPS = 1_009
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Launch:
    """This process's place among all.

    Attributes:
        launcher: what started the processes, by the variables it sets; `fourminutes launch` sets torchrun's.
        rank: number of this process, 0..world_size-1.
        world_size: number of processes.
        local_rank: number of this process on its host.
        local_world_size: number of processes on its host.
        init_method: where the processes meet, as `torch.distributed.init_process_group` takes it; None when alone.
        another_host: a host of other processes; None where there is none, or its name is not known.
    """

    launcher: LauncherName
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    init_method: str | None
    another_host: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that talks and writes."""
        return self.rank == 0

    @property
    def host_of_first(self) -> str:
        """The host of rank 0, as the others reach it."""
        if self.init_method == "env://":
            return os.environ["MASTER_ADDR"]
        return urlsplit(self.init_method or "").hostname or "127.0.0.1"

    @property
    def is_one_host(self) -> bool:
        """Whether all processes share this host."""
        return self.local_world_size == self.world_size


ALONE = Launch("alone", rank=0, world_size=1, local_rank=0, local_world_size=1, init_method=None)


def resolve_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read this process's place from its environment.

    torchrun's variables win, since torchrun may itself run inside a Slurm step. A Slurm job's batch script is not an
    `srun` task, whatever sizes the job asked for: it is alone.

    Raises:
        UserError: a variable is missing beside its companions, is no number, or contradicts another.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return _checked(_from_torchrun(environ), ("RANK", "LOCAL_RANK"))
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        return _checked(_from_slurm(environ), ("SLURM_PROCID", "SLURM_LOCALID"))
    return ALONE


def expand_hostlist(hostlist: str) -> list[str]:
    """The hosts of Slurm's short form, in its order: ``n[1-3,07],login`` is n1, n2, n3, n07, login.

    Raises:
        UserError: brackets don't match, or a range is none.
    """
    if not re.fullmatch(r"(?:[^\[\],\s]|,(?!,|$)|\[[0-9,-]+\])+", hostlist):
        raise UserError(f"SLURM_STEP_NODELIST: {hostlist!r} is no host list; start the processes with srun")
    return [host for item in re.split(r",(?![^\[]*\])", hostlist) for host in _expand_item(item)]


def _expand_item(item: str) -> list[str]:
    """The hosts of one item, such as ``rack[1-2]n[01-02]``: the product of its bracketed ranges."""
    parts = re.split(r"\[([^\]]*)\]", item)
    choices = [_expand_ranges(part) if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _expand_ranges(ranges: str) -> list[str]:
    numbers: list[str] = []
    for span in ranges.split(","):
        first, _, last = span.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise UserError(f"SLURM_STEP_NODELIST: {span!r} is no range of hosts; start the processes with srun")
        # Leading zeros are part of the name: [08-11] is 08, 09, 10, 11.
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def _from_torchrun(environ: Mapping[str, str]) -> Launch:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise UserError(f"{name}: is not set, but RANK is; start the processes with torchrun or srun")
    rank = _whole(environ, "RANK")
    is_far = _whole(environ, "LOCAL_RANK") != rank
    return Launch(
        launcher="torchrun",
        rank=rank,
        world_size=_whole(environ, "WORLD_SIZE"),
        local_rank=_whole(environ, "LOCAL_RANK"),
        local_world_size=_whole(environ, "LOCAL_WORLD_SIZE"),
        init_method="env://",
        another_host=environ["MASTER_ADDR"] if is_far else None,
    )


def _from_slurm(environ: Mapping[str, str]) -> Launch:
    """An `srun` task's place; the step's own variables win over the job's, which may be larger."""
    world_size = _whole(environ, _first_set(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
    if world_size == 1:
        return ALONE
    tasks_name = _first_set(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    tasks_per_node = _expand_counts(tasks_name, environ.get(tasks_name, ""))
    node = _whole(environ, "SLURM_NODEID")
    if sum(tasks_per_node) != world_size or node >= len(tasks_per_node):
        raise UserError(
            f"{tasks_name}: {environ.get(tasks_name)!r} does not agree with {world_size} tasks and node {node}; "
            "start the processes with srun, in one step"
        )
    return Launch(
        launcher="slurm",
        rank=_whole(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_whole(environ, "SLURM_LOCALID"),
        local_world_size=tasks_per_node[node],
        init_method=f"tcp://{_slurm_master(environ)}:{_slurm_port(environ)}",
        another_host=next((host for number, host in enumerate(_slurm_hosts(environ)) if number != node), None),
    )


def _slurm_master(environ: Mapping[str, str]) -> str:
    """The host of rank 0."""
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    hosts = _slurm_hosts(environ)
    return hosts[0] if len(hosts) > 1 else "127.0.0.1"


def _slurm_hosts(environ: Mapping[str, str]) -> list[str]:
    """The step's hosts, in the order of their numbers."""
    name = _first_set(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    return expand_hostlist(environ.get(name, ""))


def _slurm_port(environ: Mapping[str, str]) -> int:
    """A port that all tasks of the step derive alike, and other steps and jobs rarely."""
    if "MASTER_PORT" in environ:
        return _whole(environ, "MASTER_PORT")
    name = _first_set(environ, "SLURM_JOB_ID", "SLURM_JOBID")
    offset = _whole(environ, name) + _PORTS_BETWEEN_STEPS * _whole(environ, "SLURM_STEP_ID")
    return LISTENING_PORTS[offset % len(LISTENING_PORTS)]


def _expand_counts(name: str, counts: str) -> list[int]:
    """Tasks by node from Slurm's short form: ``4(x2),1`` is 4, 4, 1."""
    tasks: list[int] = []
    for item in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if match is None:
            raise UserError(f"{name}: {counts!r} is no list of tasks by node; start the processes with srun")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _first_set(environ: Mapping[str, str], preferred: str, fallback: str) -> str:
    return preferred if preferred in environ else fallback


def _whole(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name)
    if value is None:
        raise UserError(f"{name}: is not set, but its companions are; start the processes with torchrun or srun")
    if not value.isdecimal():
        raise UserError(f"{name}: {value!r} is no whole number; start the processes with torchrun or srun")
    return int(value)


def _checked(launch: Launch, names: tuple[str, str]) -> Launch:
    rank_name, local_rank_name = names
    if launch.rank >= launch.world_size:
        raise UserError(
            f"{rank_name}: {launch.rank} is not below the {launch.world_size} processes; "
            "start all of them by one torchrun or srun"
        )
    if launch.local_rank >= launch.local_world_size or launch.local_world_size > launch.world_size:
        raise UserError(
            f"{local_rank_name}: {launch.local_rank} of {launch.local_world_size} on this host does not agree with "
            f"{launch.world_size} processes; start all of them by one torchrun or srun"
        )
    return launch
