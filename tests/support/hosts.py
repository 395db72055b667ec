"""Hosts of their own on this machine: network namespaces on one bridge, each behind a link of limited rate.

Needs root, and the commands of iproute2 and util-linux. What is emulated is the rate of every host's one link, both
ways, by a token bucket. No delay is added, since kernels may lack netem: a message's latency is what this machine's
kernel and scheduler make of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TOOLS = ("ip", "tc", "nsenter", "unshare", "hostname")
# Packets that the kernel has joined are up to 64 KiB, and the bucket has to hold some of them to reach the rate. What
# is smaller than the bucket passes at once, as through a switch's buffer.
_BURST = "256kb"


@dataclass(frozen=True)
class Network:
    """A bridge and its hosts, known by their names alone, so that another process can take them away.

    Attributes:
        prefix: what the names of all its parts in the kernel begin with; short, since those have 15 letters.
        subnet: the first three numbers of every address.
        stem: what the hosts' own names begin with, before their number.
        first: number of the first host.
    """

    prefix: str
    subnet: str
    stem: str = "host"
    first: int = 0

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"{self.prefix}br"

    @property
    def gateway(self) -> str:
        """The address of the machine itself on the bridge."""
        return f"{self.subnet}.254"

    def hosts(self, count: int) -> list[Host]:
        """So many hosts, by name and address, whether or not they are there."""
        return [
            Host(f"{self.stem}{self.first + number}", f"{self.prefix}n{number}", f"{self.subnet}.{number + 1}")
            for number in range(count)
        ]

    def add(self, count: int, *, rate: str) -> list[Host]:
        """Make so many hosts, each behind a link of `rate`, in tc's words (``1gbit``)."""
        _call("ip", "link", "add", self.bridge, "type", "bridge")
        _call("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _call("ip", "link", "set", self.bridge, "up")
        made = self.hosts(count)
        for host in made:
            self._add_host(host, rate)
        return made

    def remove(self, count: int) -> None:
        """Take away whatever is there of them; none of their processes may be left."""
        for host in self.hosts(count):
            # At once, and with it the other end: that of a namespace that is gone the kernel removes some time later.
            _try("ip", "link", "del", self._link(host))
            _try("ip", "netns", "del", host.namespace)
        _try("ip", "link", "del", self.bridge)

    def _link(self, host: Host) -> str:
        return f"{host.namespace}v"

    def _add_host(self, host: Host, rate: str) -> None:
        outer = self._link(host)
        _call("ip", "netns", "add", host.namespace)
        _call("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _call("ip", "link", "set", outer, "master", self.bridge, "up")
        inside = ("ip", "-n", host.namespace)
        _call(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _call(*inside, "link", "set", device, "up")
        shape = ("root", "tbf", "rate", rate, "burst", _BURST, "latency", "50ms")
        _call("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", *shape)
        _call("tc", "qdisc", "add", "dev", outer, *shape)


def missing() -> str | None:
    """What this machine lacks for it, in words; None if nothing."""
    if os.geteuid() != 0:
        return "limited links need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"limited links need the commands {', '.join(absent)} (Debian: iproute2, util-linux, hostname)"
    try:
        with hosts(1, rate="1gbit") as (host,):
            subprocess.run(host.command(["true"]), check=True)
    except subprocess.CalledProcessError as error:
        return f"limited links need network namespaces, veth, bridge and tbf: `{' '.join(error.cmd)}` failed"
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
        return [*enter, f'hostname {self.name} && exec "$@"', "sh", *line]

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
    network = Network(f"fm{os.getpid() % 10_000}", "10.77.0")
    try:
        yield network.add(count, rate=rate)
    finally:
        network.remove(count)


def run_on(placed: Sequence[Host], line: Sequence[str], environ: Mapping[str, str], *, timeout_s: float) -> list[str]:
    """Run `line` once for every entry of `placed`, a rank each, with torchrun's variables; stdout of each rank.

    Ranks on one host stand next to each other in `placed`. As soon as one fails, all are ended.

    Raises:
        RuntimeError: a rank failed; with the end of its stderr.
        TimeoutError: they did not end in time.
    """
    shared = {**os.environ, **environ, "MASTER_ADDR": placed[0].address, "MASTER_PORT": "29500"}
    shared |= {"WORLD_SIZE": str(len(placed)), "GLOO_SOCKET_IFNAME": "eth0"}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        processes = []
        for rank, host in enumerate(placed):
            local = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank - list(placed).index(host)),
                "LOCAL_WORLD_SIZE": str(list(placed).count(host)),
            }
            out, err = (stack.enter_context((Path(folder) / f"{rank}.{name}").open("w")) for name in ("out", "err"))
            processes.append(subprocess.Popen(host.command(line), env=shared | local, stdout=out, stderr=err))
        failed = _first_failure(processes, timeout_s)
        if failed is not None:
            errors = (Path(folder) / f"{failed}.err").read_text()
            raise RuntimeError(f"rank {failed} ended with {processes[failed].returncode}: {errors[-2000:]}")
        return [(Path(folder) / f"{rank}.out").read_text() for rank in range(len(placed))]


def _first_failure(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> int | None:
    """Wait for all; the rank that failed first, whereupon all others are killed, or None."""
    end_s = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            for rank, process in enumerate(processes):
                if process.returncode:
                    return rank
            if time.monotonic() > end_s:
                raise TimeoutError(f"{len(processes)} ranks did not end within {timeout_s:g} s")
            time.sleep(0.1)
        return next((rank for rank, process in enumerate(processes) if process.returncode), None)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _call(*line: str) -> None:
    subprocess.run(line, check=True)


def _try(*line: str) -> None:
    subprocess.run(line, check=False, capture_output=True)
