"""What Slurm says of itself, its partitions and its nodes; reading works alike from 20.11 to 25."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from itertools import groupby

from fourminutes.doctor.probe import ask

# One line a node and partition. `--json` would need plugins that not every package of Slurm has. The reason, which may
# hold anything, comes last.
NODE_FORMAT = "%N|%P|%T|%c|%m|%G|%l|%s|%a|%C|%E"
_FIELDS = NODE_FORMAT.count("|") + 1
_OUT_OF_WORK = ("down", "drain", "fail", "error", "unknown", "maint", "reboot", "future", "inval")
_NOT_RESPONDING = "*"
_FLAGS = "*~#!%$@^-+"


@dataclass(frozen=True)
class Node:
    """A node, as a partition has it.

    Attributes:
        name: of the node.
        state: in Slurm's words, such as ``idle`` or ``down*``.
        cpus: CPUs in all, and `idle_cpus` of them free.
        idle_cpus: CPUs that no job has.
        memory_mb: that jobs may have, in MB.
        gpus: generic resources of the kind gpu.
        reason: why it is out of work; empty where nobody said.
    """

    name: str
    state: str
    cpus: int
    idle_cpus: int
    memory_mb: int
    gpus: int
    reason: str

    @property
    def works(self) -> bool:
        """Whether it takes jobs, now or when others have ended."""
        state = self.state.lower()
        return _NOT_RESPONDING not in state and not state.startswith(_OUT_OF_WORK)

    @property
    def is_idle(self) -> bool:
        """Whether it has no job and takes any."""
        return self.works and self.state.rstrip(_FLAGS) == "idle" and "~" not in self.state


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes.

    Attributes:
        name: of the partition.
        is_default: whether jobs go there that name none.
        is_up: whether it takes jobs.
        limit_min: longest time of a job in minutes; None for no limit.
        max_nodes: most nodes of a job; None for no limit.
        nodes: all of its nodes.
    """

    name: str
    is_default: bool
    is_up: bool
    limit_min: float | None
    max_nodes: int | None
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Cluster:
    """Slurm as it answers here.

    Attributes:
        version: of the commands.
        config: `scontrol show config`, by key; empty where the controller does not answer.
        partitions: in Slurm's order; empty likewise.
        accounting: whether `sacct` answers.
        complaint: what was said instead of an answer; empty where there was one.
    """

    version: str
    config: dict[str, str]
    partitions: tuple[Partition, ...]
    accounting: bool
    complaint: str

    @property
    def answers(self) -> bool:
        """Whether the controller does."""
        return bool(self.partitions)

    def partition(self, name: str | None) -> Partition | None:
        """The partition of that name, or where None is named the default one."""
        wanted = [each for each in self.partitions if (each.is_default if name is None else each.name == name)]
        return wanted[0] if wanted else None


def ask_slurm() -> Cluster | None:
    """Slurm as it answers here; None where its commands are not."""
    if shutil.which("sinfo") is None:
        return None
    version = ask("sinfo", "--version").stdout.strip() or "of no known version"
    listing = ask("sinfo", "--noheader", "--Node", "-a", f"--format={NODE_FORMAT}")
    partitions = parse_nodes(listing.stdout) if listing.is_good else ()
    if not partitions:
        return Cluster(version, {}, (), accounting=False, complaint=listing.complaint)
    config = parse_config(ask("scontrol", "show", "config").stdout)
    accounting = ask("sacct", "--noheader", "--allocations", "--starttime=now").is_good
    return Cluster(version, config, partitions, accounting=accounting, complaint="")


def parse_config(text: str) -> dict[str, str]:
    """The values of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_nodes(listing: str) -> tuple[Partition, ...]:
    """The partitions of `sinfo --Node --format=NODE_FORMAT`, in the order in which they first come."""
    rows = [row for line in listing.splitlines() if len(row := line.strip().split("|", _FIELDS - 1)) == _FIELDS]
    order = list(dict.fromkeys(row[1] for row in rows))
    rows.sort(key=lambda row: order.index(row[1]))
    return tuple(_partition(name, list(group)) for name, group in groupby(rows, key=lambda row: row[1]))


def _partition(name: str, rows: list[list[str]]) -> Partition:
    _, _, _, _, _, _, limit, sizes, available, _, _ = rows[0]
    most = sizes.rpartition("-")[2]
    return Partition(
        name=name.removesuffix("*"),
        is_default=name.endswith("*"),
        is_up=available == "up",
        limit_min=parse_minutes(limit),
        max_nodes=int(most) if most.isdigit() else None,
        nodes=tuple(_node(row) for row in rows),
    )


def _node(row: list[str]) -> Node:
    name, _, state, cpus, memory, gres, _, _, _, used, reason = row
    idle = used.split("/")[1] if used.count("/") == 3 else "0"
    return Node(
        name=name,
        state=state,
        cpus=_number(cpus),
        idle_cpus=_number(idle),
        memory_mb=_number(memory),
        gpus=parse_gres(gres),
        reason="" if reason.lower() in ("none", "(null)") else reason,
    )


def parse_gres(gres: str) -> int:
    """Number of GPUs in a node's generic resources, such as ``gpu:a100:8(S:0-1),nvme:1``."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    counts = re.findall(r"(?:^|,)gpu(?::[^:,]+)??(?::(\d+))?(?=,|$)", plain)
    return sum(int(count or 1) for count in counts)


def parse_minutes(limit: str) -> float | None:
    """A time limit in minutes; Slurm writes ``days-hours:minutes:seconds``, ``minutes:seconds`` or ``infinite``."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _number(text: str) -> int:
    """Slurm writes ``64+`` where nodes of one line differ."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0
