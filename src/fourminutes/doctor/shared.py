"""What nodes say that were asked all the same: do they share files with this machine, and the time, and Python."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourminutes import __version__
from fourminutes.doctor.finding import Finding, Findings, Mark, some

CLOCKS_DIFFER_S = 2.0
"""What Snakemake, which goes by files' times, takes badly; less cannot be told from a message's way."""


@dataclass
class NodeSays:
    """What one node said.

    Attributes:
        ahead_s: by how much its clock is ahead of the one here; None where it told no time.
        answers: by question.
    """

    ahead_s: float | None = None
    answers: dict[str, str] = field(default_factory=dict)


def heard(lines: Iterable[str]) -> dict[str, NodeSays]:
    """The answers by node, of lines ``node|question|answer``; each clock is compared with the moment of hearing it."""
    says: dict[str, NodeSays] = {}
    for line in lines:
        now_s = time.time()
        node, _, rest = line.rstrip("\n").partition("|")
        question, separator, answer = rest.partition("|")
        if not separator:
            continue
        said = says.setdefault(node, NodeSays())
        said.answers[question] = answer
        if question == "time" and re.fullmatch(r"\d+\.\d+", answer):
            said.ahead_s = float(answer) - now_s
    return says


def node_findings(
    says: Mapping[str, NodeSays], folders: Sequence[tuple[Path, Path]], token: str, wrong: Mark
) -> list[Finding]:
    """What follows from the nodes' answers.

    Args:
        says: at least one node.
        folders: each folder that is to be shared, and the one in it where files were written.
        token: that was written here, and that the nodes were to write.
        wrong: how bad it is if something is not shared.
    """
    findings = Findings("shared files")
    for number, (folder, place) in enumerate(folders):
        _add_folder(findings, folder, _faults(says, number, place, token), len(says), wrong)
    _add_clocks(findings, says)
    _add_environment(findings, says, wrong)
    return findings.all


def _faults(says: Mapping[str, NodeSays], number: int, place: Path, token: str) -> dict[str, str]:
    """By node: what did not come across in the folder of that number."""
    faults = {}
    for node, said in says.items():
        read, written = said.answers.get(f"read {number}", ""), said.answers.get(f"write {number}", "")
        if read != token:
            faults[node] = f"cannot read what is written here ({read or 'no answer'})"
        elif written:
            faults[node] = f"cannot write ({written})"
        elif not _arrived(place / node, token):
            faults[node] = "writes what is not seen here"
    return faults


def _arrived(path: Path, token: str) -> bool:
    try:
        return path.read_text() == token
    except OSError:
        return False


def _add_folder(findings: Findings, folder: Path, faults: dict[str, str], nodes: int, wrong: Mark) -> None:
    if not faults:
        findings.add("ok", "shared", f"{folder}: read and written from {nodes} nodes and from here")
        return
    node, fault = next(iter(faults.items()))
    what = f"{folder}: {some(sorted(faults))}: {node} {fault}"
    findings.add(wrong, "shared", what, "put the clone, the data's root and work on a file system that all nodes mount")


def _add_clocks(findings: Findings, says: Mapping[str, NodeSays]) -> None:
    ahead_s = {node: said.ahead_s for node, said in says.items() if said.ahead_s is not None}
    node = max(ahead_s, key=lambda name: abs(ahead_s[name]), default=None)
    if node is None:
        findings.add("warn", "clocks", "no node told its time", "try it: srun date +%s.%N")
    elif abs(ahead_s[node]) > CLOCKS_DIFFER_S:
        what = f"{node} is {abs(ahead_s[node]):.1f} s {'ahead of' if ahead_s[node] > 0 else 'behind'} this machine"
        findings.add("warn", "clocks", what, "have them set by NTP; Snakemake goes by files' times")
    else:
        findings.add("ok", "clocks", f"{len(ahead_s)} nodes within {CLOCKS_DIFFER_S:g} s of this machine")


def _add_environment(findings: Findings, says: Mapping[str, NodeSays], wrong: Mark) -> None:
    others = {node: said.answers.get("version", "") for node, said in says.items()}
    others = {node: answer for node, answer in others.items() if answer != __version__}
    if not others:
        findings.add("ok", "environment", f"{sys.executable} runs fourminutes {__version__} on {len(says)} nodes")
        return
    answer = next(iter(others.values()))
    what = f"{sys.executable} does not run on {some(sorted(others))}: {answer or 'no answer'}"
    findings.add(
        wrong,
        "environment",
        what,
        "make .venv from a Python that all nodes have: make setup PYTHON=/path/to/python3.11",
    )
