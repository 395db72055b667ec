"""Hosts of their own on this machine: network namespaces on one bridge, each behind a link of limited rate.

Needs root, and the commands of iproute2 and util-linux. What is emulated is the rate of every host's one link, both
ways, by a token bucket. No delay is added, since kernels may lack netem: a message's latency is what this machine's
kernel and scheduler make of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "tc", "nsenter", "unshare")
_PREFIX = f"fm{os.getpid() % 10_000}"
_SUBNET = "10.77.0"
# Packets that the kernel has joined are up to 64 KiB, and the bucket has to hold some of them to reach the rate. What
# is smaller than the bucket passes at once, as through a switch's buffer.
_BURST = "256kb"


def missing() -> str | None:
    """What this machine lacks for it, in words; None if nothing."""
    if os.geteuid() != 0:
        return "limited links need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"limited links need the commands {', '.join(absent)} (Debian: iproute2, util-linux)"
    probe = subprocess.run(["ip", "netns", "add", f"{_PREFIX}probe"], check=False, capture_output=True, text=True)
    if probe.returncode != 0:
        return f"limited links need network namespaces: {probe.stderr.strip()}"
    _call("ip", "netns", "del", f"{_PREFIX}probe")
    return None


@dataclass(frozen=True)
class Host:
    """One host: its name is what its processes find as theirs, `address` is on the bridge."""

    name: str
    namespace: str
    address: str

    def command(self, line: Sequence[str]) -> list[str]:
        """The command line that runs `line` on this host."""
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "sh", "-c"]
        return [*enter, f'hostname {self.name}; exec "$@"', "sh", *line]

    def counted_bytes(self) -> tuple[int, int]:
        """Bytes received and sent through the host's link so far, with all headers."""
        text = subprocess.run(
            ["ip", "netns", "exec", self.namespace, "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
        ).stdout
        fields = next(line for line in text.splitlines() if "eth0:" in line).split(":")[1].split()
        return int(fields[0]), int(fields[8])


@contextmanager
def hosts(count: int, *, rate: str) -> Iterator[list[Host]]:
    """So many hosts, each behind a link of `rate`, in tc's words (``1gbit``); gone at the end of the block."""
    bridge = f"{_PREFIX}br"
    with ExitStack() as undo:
        _call("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(_call, "ip", "link", "del", bridge)
        _call("ip", "link", "set", bridge, "up")
        yield [_add_host(number, bridge, rate, undo) for number in range(count)]


def _add_host(number: int, bridge: str, rate: str, undo: ExitStack) -> Host:
    host = Host(f"host{number}", f"{_PREFIX}n{number}", f"{_SUBNET}.{number + 1}")
    outer = f"{_PREFIX}v{number}"
    _call("ip", "netns", "add", host.namespace)
    undo.callback(_call, "ip", "netns", "del", host.namespace)
    _call("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _call("ip", "link", "set", outer, "master", bridge, "up")
    inside = ("ip", "-n", host.namespace)
    _call(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _call(*inside, "link", "set", device, "up")
    shape = ("root", "tbf", "rate", rate, "burst", _BURST, "latency", "50ms")
    _call("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", *shape)
    _call("tc", "qdisc", "add", "dev", outer, *shape)
    return host


def run_on(placed: Sequence[Host], line: Sequence[str], environ: Mapping[str, str], *, timeout_s: float) -> list[str]:
    """Run `line` once for every entry of `placed`, a rank each, with torchrun's variables; stdout of each rank.

    Ranks on one host stand next to each other in `placed`.

    Raises:
        RuntimeError: a rank failed; with the end of its stderr.
        subprocess.TimeoutExpired: they did not end in time, and were killed.
    """
    shared = {**os.environ, **environ, "MASTER_ADDR": placed[0].address, "MASTER_PORT": "29500"}
    shared |= {"WORLD_SIZE": str(len(placed)), "GLOO_SOCKET_IFNAME": "eth0"}
    processes = []
    try:
        for rank, host in enumerate(placed):
            local = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank - list(placed).index(host)),
                "LOCAL_WORLD_SIZE": str(list(placed).count(host)),
            }
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(host.command(line), env=shared | local, **pipes))
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode:
            raise RuntimeError(f"rank {rank} ended with {process.returncode}: {errors[-2000:]}")
    return [output for output, _ in outputs]


def here() -> Path:
    """The root of this clone."""
    return Path(__file__).resolve().parents[2]


def _call(*line: str) -> None:
    subprocess.run(line, check=True)
