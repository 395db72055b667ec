"""What the doctor says: findings, each with what to do, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from pydantic import Field

from fourminutes.errors import UserError
from fourminutes.record import Provenance, Record

Mark = Literal["ok", "note", "warn", "missing"]
Group = Literal["plan", "software", "devices", "slurm", "jobs", "shared files", "file systems", "archives", "duration"]


class Finding(Record):
    """One thing that was looked at."""

    group: Group
    subject: str = Field(description="what was looked at, in a word or two")
    mark: Mark = Field(
        description="ok; note: good to know; warn: the plan runs, but not well; missing: the plan cannot run"
    )
    found: str = Field(description="what was found, in one line")
    to_do: str | None = Field(None, description="what to do about it; null where nothing is")


class Examination(Record):
    """All that the doctor found out."""

    kind: Literal["examination"] = "examination"
    plan: str | None = Field(description="file of the plan that was held against this machine; null for none")
    can_run: bool = Field(description="whether nothing that the plan needs is missing")
    findings: tuple[Finding, ...]
    provenance: Provenance


class Findings:
    """Collects the findings of one group."""

    def __init__(self, group: Group) -> None:
        self._group: Group = group
        self.all: list[Finding] = []

    def add(self, mark: Mark, subject: str, found: str, to_do: str | None = None) -> None:
        """One more; line breaks become blanks."""
        found, to_do = one_line(found), to_do and one_line(to_do)
        self.all.append(Finding(group=self._group, subject=subject, mark=mark, found=found, to_do=to_do))

    def add_error(self, mark: Mark, subject: str, error: UserError) -> None:
        """What a part of the project refused, whose line names the thing and then the way out."""
        found, _, to_do = str(error).partition("; ")
        self.add(mark, subject, found, to_do or None)


def one_line(text: str) -> str:
    """`text` with every run of white space made one blank."""
    return " ".join(text.split())


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first of `names`, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def duration(minutes: float) -> str:
    """A length of time, in the unit that suits it."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.3g} h" if minutes < 2880 else f"{minutes / 1440:.3g} days"


def shown(examination: Examination) -> str:
    """The examination for reading: a line a finding, grouped and aligned, what to do below it."""
    width = max((len(finding.subject) for finding in examination.findings), default=0)
    lines = [f"plan: {examination.plan or 'none; --plan PLAN.yaml holds one against this machine'}"]
    for group, findings in groupby(examination.findings, key=lambda finding: finding.group):
        lines += ["", group]
        for finding in findings:
            lines.append(f"  {finding.mark:7}  {finding.subject:{width}}  {finding.found}")
            if finding.to_do:
                lines.append(f"{'':{13 + width}}-> {finding.to_do}")
    return "\n".join([*lines, "", _verdict(examination)])


_COUNTED: dict[Mark, str] = {"missing": "missing", "warn": "to be warned of", "note": "to note"}


def _verdict(examination: Examination) -> str:
    marks = [finding.mark for finding in examination.findings]
    counts = (
        ", ".join(f"{marks.count(mark)} {words}" for mark, words in _COUNTED.items() if mark in marks) or "all is well"
    )
    if examination.plan is None:
        return f"no plan was held against this machine: {counts}"
    return f"the plan can{'' if examination.can_run else 'not'} be run here: {counts}"
