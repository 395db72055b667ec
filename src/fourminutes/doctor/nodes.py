"""The idle nodes, in one step of Slurm: do they share files with this machine, and the time, and this environment."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

from fourminutes.doctor.finding import Finding, Findings, Mark, one_line, some
from fourminutes.doctor.profile import Profile
from fourminutes.doctor.shared import CLOCKS_DIFFER_S, NodeSays, heard, node_findings
from fourminutes.doctor.slurm import Cluster

STEP_LIMIT_S = 90
_WAIT_FOR_NODES_S = 15
_HERE = "here"

# What every node does, in a shell, since its Python may be what is missing. A line each: node|what|answer.
_PROGRAM = """
token=$1 python=$2; shift 2
say() { printf '%s|%s|%s\\n' "$SLURMD_NODENAME" "$1" "$2"; }
say time "$(date +%s.%N)"
number=0
for folder; do
  say "read $number" "$(head -c 100 "$folder/here" 2>&1 | head -n 1)"
  say "write $number" "$( { printf %s "$token" > "$folder/$SLURMD_NODENAME"; } 2>&1 | head -n 1)"
  number=$((number + 1))
done
say version "$("$python" -m fourminutes --version 2>&1 | tail -n 1)"
"""


def look_at_nodes(cluster: Cluster, profile: Profile, folders: Sequence[Path], *, needed: bool) -> list[Finding]:
    """What the idle nodes of the profile's partition see of the folders, and what time they have.

    Args:
        cluster: which answers.
        profile: names partition and account.
        folders: that the nodes must share with this machine, existing ones.
        needed: whether the plan has jobs of several nodes.
    """
    findings = Findings("shared files")
    partition = cluster.partition(profile.resource("", "slurm_partition"))
    idle = [node.name for node in partition.nodes if node.is_idle] if partition else []
    if partition is None or not idle:
        findings.add("note", "nodes", "none is idle, so none was asked", "look again when some are")
        return findings.all
    wrong: Mark = "missing" if needed else "warn"
    with ExitStack() as stack:
        places = [_place(folder, stack) for folder in folders]
        token = secrets.token_hex(8)
        for place in places:
            (place / _HERE).write_text(token)
        options = [f"--partition={partition.name}", *_account(profile)]
        says, complaint = _ask_nodes(idle, options, [token, sys.executable, *map(str, places)])
        if not says:
            to_do = f"try it: srun --partition={partition.name} hostname"
            findings.add("warn", "nodes", f"{len(idle)} idle ones did not answer: {complaint}", to_do)
            return findings.all
        findings.all += node_findings(says, list(zip(folders, places, strict=True)), token, wrong)
    if silent := sorted(set(idle) - set(says)):
        findings.add("warn", "nodes", f"no answer from {some(silent)}: {complaint}", "`sinfo -R`, `scontrol show node`")
    return findings.all


def file_times(folders: Sequence[Path]) -> list[Finding]:
    """Whether the folders' file systems date files by the clock of this machine."""
    findings = Findings("shared files")
    for folder in folders:
        with ExitStack() as stack:
            now_s = time.time()
            ahead_s = _place(folder, stack).stat().st_mtime - now_s
        if abs(ahead_s) > CLOCKS_DIFFER_S:
            what = f"{folder}: dated {abs(ahead_s):.1f} s {'after' if ahead_s > 0 else 'before'} the clock here"
            findings.add("warn", "file times", what, "have the clocks set by NTP: Snakemake goes by files' times")
        else:
            findings.add("ok", "file times", f"{folder}: by the clock here, within {CLOCKS_DIFFER_S:g} s")
    return findings.all


def _place(folder: Path, stack: ExitStack) -> Path:
    """A folder of our own in `folder`, gone when the stack is."""
    place = Path(tempfile.mkdtemp(prefix=".fourminutes-doctor-", dir=folder))
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    return place


def _account(profile: Profile) -> list[str]:
    account = profile.resource("", "slurm_account")
    return [f"--account={account}"] if account else []


def _ask_nodes(nodes: list[str], options: list[str], arguments: list[str]) -> tuple[dict[str, NodeSays], str]:
    """Run `_PROGRAM` once on every node; what each says, and what srun complains of.

    Sizes are given in full, and variables of a job that this may run in are left out, so that it is always a job of its
    own. A cluster without free nodes refuses at once.
    """
    size = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=200"]
    limits = [f"--immediate={_WAIT_FOR_NODES_S}", "--time=2", "--wait=0", "--no-kill"]
    where = [f"--nodelist={','.join(nodes)}", "--job-name=fourminutes-doctor", *options]
    own = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")}
    line = ["srun", *size, *limits, *where, "sh", "-c", _PROGRAM, "sh", *arguments]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(  # which is waited for, also when this is to end: srun then gives the nodes back
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            errors="replace",
            env=own,
        ) as step,
    ):
        timer = Timer(STEP_LIMIT_S, step.terminate)
        timer.start()
        says = heard(step.stdout or ())
        step.wait()
        timer.cancel()
        complaints.seek(0)
        return says, one_line(complaints.read())[-300:] or f"srun ended with status {step.returncode}"
