"""A run that another start has finished since this one was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from fourminutes.comm.lease import Held
from fourminutes.comm.start import ASKED
from fourminutes.errors import UserError
from fourminutes.record import RunRecord, read_record


def finished_meanwhile(path: Path, lease: Held | None, environ: Mapping[str, str] = os.environ) -> RunRecord | None:
    """The record at `path`, where it answers what this start was asked for; else None.

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
    job = lease.began.holder.job
    last = record.sessions[-1].job
    if job is not None and last is not None and last.partition("+")[0] == job:
        return record
    asked = environ.get(ASKED, lease.began.holder.started)
    is_answer = datetime.fromisoformat(record.provenance.written) > datetime.fromisoformat(asked)
    return record if is_answer else None
