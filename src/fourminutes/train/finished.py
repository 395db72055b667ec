"""A run that another start has finished since this one was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from fourminutes.comm.holder import Start
from fourminutes.comm.lease import Held
from fourminutes.comm.start import ASKED
from fourminutes.errors import UserError
from fourminutes.plan import RunPlan
from fourminutes.record import RunRecord, read_record


def finished_meanwhile(
    path: Path, settings: RunPlan, lease: Held | None, environ: Mapping[str, str] = os.environ
) -> RunRecord | None:
    """The record at `path`, where it answers what this start was asked for, a run with `settings`; else None.

    It does where it was written since then: a job may have stood in the queue while another one did the same work, or
    waited for it. It also does where an earlier start of the same Slurm job wrote it, and came no further. One that is
    older is of no concern: who asks for a finished run wants it trained anew.
    """
    if lease is None or not path.is_file():
        return None
    try:
        record = read_record(path, RunRecord)
    except UserError:  # damaged, or of an older form
        return None
    if record.settings.recipe_hash != settings.recipe_hash:
        return None
    if _is_of_an_earlier_start(record.sessions[-1].job, lease.began.holder):
        return record
    asked = environ.get(ASKED, lease.began.holder.started)
    is_answer = datetime.fromisoformat(record.provenance.written) > datetime.fromisoformat(asked)
    return record if is_answer else None


def _is_of_an_earlier_start(job: str | None, now: Start) -> bool:
    """Whether a session's `job` is the one that is starting `now`, before Slurm put it back into the queue."""
    if job is None or now.job is None:
        return False
    number, _, restarts = job.partition("+")
    return number == now.job and int(restarts or 0) < (now.restarts or 0)
