"""A real Slurm of four nodes on this machine: ``python tests/support/cluster.py up``, and ``down`` takes it away.

Each node is a `slurmd` in a network namespace of its own, with its own host name, behind a link of limited rate. With
``up --loopback``, and where the kernel allows no namespaces, all run under this machine's own name. Needs root, since
Slurm's configuration must be where every job's commands look for it. Whatever is changed on the machine is written down
here, and undone by ``down``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import hosts

COUNT = 4
RATE = "200mbit"
NETWORK = hosts.Network("fmslurm", "10.78.0", stem="n", first=1)
PACKAGES = ("slurm-wlm-basic-plugins", "slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
COMMANDS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "ip")
CONFIG = Path("/etc/slurm/slurm.conf")
GPU_CONFIG = Path("/etc/slurm/gres.conf")
STATE = Path("/run/fourminutes-cluster")
_HOSTS_FILE = Path("/etc/hosts")
_MARK = "# four-minutes test cluster"
_WITHIN_S = 60.0


class NoCluster(Exception):
    """There is none, and none can be had here; says why."""


@dataclass(frozen=True)
class Cluster:
    """The cluster that is up.

    Attributes:
        nodes: the nodes' names, in order.
        hosts: where each runs; empty on loopback.
    """

    nodes: tuple[str, ...] = tuple(f"{NETWORK.stem}{NETWORK.first + number}" for number in range(COUNT))
    hosts: dict[str, hosts.Host] = field(default_factory=dict)

    def down(self, node: str) -> None:
        """Kill the node's slurmd as a crash would, and wait until Slurm has found out."""
        _kill(STATE / f"{node}.pid", signal.SIGKILL)
        wait_until(f"{node} is down", lambda: "down" in self.state(node))

    def up(self, node: str) -> None:
        """Start the node's slurmd, and wait until Slurm has the node back."""
        _start_node(self, node)
        with suppress(subprocess.CalledProcessError):
            _call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_until(f"{node} is back", lambda: self.state(node) in ("idle", "mixed", "allocated"))

    def cancel_all(self) -> None:
        """Cancel every job."""
        _call("scancel", "--user", str(os.geteuid()))

    def wait_until_idle(self) -> None:
        """Wait until no node has anything to do.

        Raises:
            NoCluster: some still have; says which.
        """
        states = dict.fromkeys(self.nodes, "")

        def all_idle() -> bool:
            states.update({node: self.state(node) for node in self.nodes})
            return set(states.values()) == {"idle"}

        try:
            wait_until("all nodes are idle", all_idle)
        except NoCluster as error:
            raise NoCluster(f"{error}; {states}; {_call('squeue', '--noheader')}") from error

    def state(self, node: str) -> str:
        """What Slurm says of a node, such as ``idle`` or ``down*``."""
        return _call("sinfo", "--noheader", "--nodes", node, "--format=%T").strip().splitlines()[0]


def find() -> Cluster | None:
    """The cluster, if it is up."""
    # Another Slurm may answer, where one was installed since: it is nobody's to test with.
    if not STATE.is_dir() or not _is_ours(CONFIG) or _call_status("scontrol", "ping") != 0:
        return None
    has_hosts = (STATE / "namespaces").exists()
    return Cluster(hosts={host.name: host for host in NETWORK.hosts(COUNT)} if has_hosts else {})


def up(*, loopback: bool = False) -> Cluster:
    """Bring the cluster up, if it is not; on `loopback` wherever that is all that can be had.

    Raises:
        NoCluster: this machine cannot have it; says why.
    """
    if (cluster := find()) is not None:
        return cluster
    _require()
    down()
    try:
        cluster = _build(loopback)
    except BaseException:
        down()
        raise
    return cluster


def down() -> None:
    """Take everything away that `up` has made, whatever is left of it."""
    if find() is not None:
        _end_jobs()
    for pid_file in STATE.glob("*.pid"):
        _kill(pid_file, signal.SIGKILL)
    _kill_all(_inside())
    while _started:
        _started.pop().wait()
    NETWORK.remove(COUNT)
    for config in (CONFIG, GPU_CONFIG):
        if _is_ours(config):
            config.unlink()
    with suppress(OSError):
        CONFIG.parent.rmdir()  # unless a package's files are there
    _write_hosts([])
    shutil.rmtree(STATE, ignore_errors=True)


def wait_until(what: str, holds: Callable[[], bool], within_s: float = _WITHIN_S) -> None:
    """Wait until something holds.

    Raises:
        NoCluster: it did not in time; says what.
    """
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise NoCluster(f"not within {within_s:g} s: {what}; see {STATE}/*.log")
        time.sleep(0.2)


def _require() -> None:
    """Raise where this machine cannot have a cluster."""
    if os.geteuid() != 0:
        raise NoCluster("a Slurm of one's own needs root")
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        install = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
        raise NoCluster(f"a Slurm of one's own needs {', '.join(absent)} (Debian: {install})")
    for config in (CONFIG, GPU_CONFIG):
        if config.exists() and not _is_ours(config):
            raise NoCluster(f"{config} belongs to another Slurm, which is left alone")


def _end_jobs() -> None:
    """Let Slurm end what runs, as long as it can."""
    _call_status("scancel", "--user", str(os.geteuid()))
    with suppress(NoCluster):
        wait_until("all jobs have ended", lambda: not _call("squeue", "--noheader").strip())


def _build(loopback: bool) -> Cluster:
    for folder in (STATE, STATE / "ctld", CONFIG.parent):
        folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(hosts={} if loopback else _make_hosts())
    _write_hosts([(cluster.hosts[node].address if cluster.hosts else "127.0.0.1", node) for node in cluster.nodes])
    for number in range(2):
        (STATE / f"gpu{number}").touch()
    CONFIG.write_text(_configuration(cluster))
    GPU_CONFIG.write_text(f"{_MARK}\nNodeName={','.join(cluster.nodes)} Name=gpu File={STATE}/gpu[0-1]\n")
    _start_munge()
    _start("slurmctld", ["slurmctld", "-D"])
    for node in cluster.nodes:
        _start_node(cluster, node)
    cluster.wait_until_idle()
    return cluster


def _make_hosts() -> dict[str, hosts.Host]:
    """A host for every node; none where the kernel allows none."""
    if hosts.missing() is not None:
        return {}
    made = NETWORK.add(COUNT, rate=RATE)
    (STATE / "namespaces").touch()
    return {host.name: host for host in made}


def _start_munge() -> None:
    key = STATE / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    STATE.chmod(0o755)
    names = ("key", "socket", "pid", "log", "seed")
    files = [f"--{name}-file={STATE}/munge.{name}" for name in names if name != "socket"]
    _start("munged", ["munged", "--foreground", "--force", f"--socket={STATE}/munge.socket", *files])
    wait_until("munge answers", (STATE / "munge.socket").exists)


def _start_node(cluster: Cluster, node: str) -> None:
    line = ["slurmd", "-D", "-N", node]
    host = cluster.hosts.get(node)
    _start(node, host.command(line) if host else line)


def _start(name: str, line: list[str]) -> None:
    """Start a daemon of ours, which outlives this process; what it says goes to a log."""
    with (STATE / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", env=_environ()
        )
    (STATE / f"{name}.pid").write_text(str(process.pid))
    _started.append(process)  # or Python would complain that it still runs


_started: list[subprocess.Popen[bytes]] = []


def _environ() -> dict[str, str]:
    """A daemon's environment, which jobs don't get; as from a machine's start, so that nothing here leaks into it."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def _configuration(cluster: Cluster) -> str:
    controller = NETWORK.gateway if cluster.hosts else "127.0.0.1"
    lines = [
        _MARK,
        "ClusterName=four",
        f"SlurmctldHost={socket.gethostname()}({controller})",
        "AuthType=auth/munge",
        # The second is also how long a requeued job waits before it starts again.
        f"AuthInfo=socket={STATE}/munge.socket,cred_expire=5",
        "SlurmUser=root",
        "SlurmctldPort=16817",
        "SlurmdPort=16818",
        f"SlurmctldPidFile={STATE}/ctld/slurmctld.pid",
        f"SlurmdPidFile={STATE}/ctld/%n.pid",
        f"StateSaveLocation={STATE}/ctld",
        f"SlurmdSpoolDir={STATE}/spool-%n",
        "MpiDefault=none",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        f"JobCompType=jobcomp/filetxt\nJobCompLoc={STATE}/jobs.txt",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=2,bf_interval=5,batch_sched_delay=0",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "ReturnToService=2",
        # A node that is gone is found out soon, and a job that is told to end has time for a checkpoint.
        "SlurmdTimeout=6",
        "KillWait=20",
        # Where nobody reaps orphans, as in some containers, Slurm takes them for living.
        "UnkillableStepTimeout=5",
        "MinJobAge=300",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
    ]
    shape = "CPUs=4 RealMemory=64000 Gres=gpu:2 State=UNKNOWN"
    for number, node in enumerate(cluster.nodes):
        host = cluster.hosts.get(node)
        place = (
            f"NodeAddr={host.address}" if host else f"NodeAddr=127.0.0.1 NodeHostname=localhost Port={17001 + number}"
        )
        lines.append(f"NodeName={node} {place} {shape}")
    nodes = ",".join(cluster.nodes)
    lines.append("DefMemPerCPU=500")
    lines.append(f"PartitionName=main Nodes={nodes} Default=YES MaxTime=1-00:00:00 PriorityTier=1 State=UP")
    lines.append(f"PartitionName=urgent Nodes={nodes} MaxTime=0-01:00:00 PriorityTier=10 PreemptMode=OFF State=UP")
    return "\n".join(lines) + "\n"


def _is_ours(config: Path) -> bool:
    return config.is_file() and config.read_text().startswith(_MARK)


def _write_hosts(entries: Iterable[tuple[str, str]]) -> None:
    """Have the nodes' names in /etc/hosts, and no other lines of ours. In place: it may be a mount of its own."""
    kept = [line for line in _HOSTS_FILE.read_text().splitlines() if not line.endswith(_MARK)]
    lines = [*kept, *(f"{address} {name} {_MARK}" for address, name in entries)]
    if lines != kept or len(kept) != len(_HOSTS_FILE.read_text().splitlines()):
        _HOSTS_FILE.write_text("\n".join(lines) + "\n")


def _inside() -> list[int]:
    """The processes on the nodes, and what Slurm left of jobs."""
    pids = []
    for host in NETWORK.hosts(COUNT):
        listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False)
        pids += [int(pid) for pid in listed.stdout.split()]
    return pids + [pid for node in Cluster().nodes if _is_ours(CONFIG) for pid in processes_of(node)]


def processes_of(node: str) -> list[int]:
    """The processes of jobs on a node, as their environment tells."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURMD_NODENAME={node}" in (folder / "environ").read_bytes().decode(errors="replace").split("\0"):
                found.append(int(folder.name))
    return found


def _kill(pid_file: Path, number: signal.Signals) -> None:
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        # A pid may have gone to another since.
        if any(word in Path(f"/proc/{pid}/cmdline").read_text() for word in ("slurm", "munge")):
            os.kill(pid, number)
    pid_file.unlink(missing_ok=True)


def _kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _call(*line: str) -> str:
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60, env=_ours()).stdout


def _call_status(*line: str) -> int:
    return subprocess.run(line, check=False, capture_output=True, timeout=60, env=_ours()).returncode


def _ours() -> dict[str, str]:
    """An environment in which Slurm's commands speak to this cluster."""
    return os.environ | {"SLURM_CONF": str(CONFIG)}


def main() -> int:
    """Bring the cluster up, or take it away."""
    if sys.argv[1:] not in (["up"], ["up", "--loopback"], ["down"]):
        print("usage: cluster.py up [--loopback] | down", file=sys.stderr)
        return 2
    try:
        if sys.argv[1] == "down":
            down()
            print("the cluster is gone")
        else:
            cluster = up(loopback="--loopback" in sys.argv)
            where = f"each behind a link of {RATE}" if cluster.hosts else "all on loopback"
            print(f"Slurm is up: {', '.join(cluster.nodes)}, {where}; logs in {STATE}")
    except NoCluster as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
