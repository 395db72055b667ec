"""A run that another start finished while this one stood in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourminutes.comm.holder import Lease, Start
from fourminutes.comm.lease import Held
from fourminutes.comm.start import ASKED
from fourminutes.plan import RunPlan
from fourminutes.record import Placement, Provenance, RunRecord, Session, write_record
from fourminutes.train.finished import finished_meanwhile

EARLIER, THEN, LATER = (f"2026-11-20T{hour:02d}:00:00+00:00" for hour in (8, 9, 10))


def lease(job: str | None = None, restarts: int = 0) -> Held:
    start = Start(start="ab", started=THEN, host="n1", process=1, born=None, job=job, restarts=restarts)
    return Held(Path("x.lease.json"), "ab", Lease(holder=start))


def found_with(path: Path, lease: Held, environ: dict[str, str], settings: RunPlan | None = None) -> RunRecord | None:
    """What answers a start that is asked for a run of these settings, by default those of the record."""
    return finished_meanwhile(path, settings or RunPlan(), lease, environ)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record written at nine by job 5."""
    path = tmp_path / "record.json"
    session = Session(started=EARLIER, from_step=0, to_step=8, wall_s=1, ended="finished", job="5+2")
    record = RunRecord(
        plan="p",
        run="r",
        settings=RunPlan(),
        settings_hash="",
        dataset="d",
        dataset_hash="",
        class_count=1,
        parameters=1,
        gradient_tensors=1,
        placement=Placement(launcher="alone", hosts=("n1",), device="cpu", backend=None),
        provenance=Provenance(
            written=THEN,
            command="",
            git_commit=None,
            git_dirty=None,
            versions={},
            host="n1",
            cpu="",
            cpu_cores=1,
            memory_gib=1,
        ),
        epochs=(),
        sessions=(session,),
        parameter_checksum="",
    )
    write_record(path, record)
    return path


def test_what_was_finished_since_this_start_was_asked_for_answers_it(path: Path) -> None:
    found = found_with(path, lease(job="7"), {ASKED: EARLIER})
    assert found is not None
    assert found.sessions[0].job == "5+2"


@pytest.mark.parametrize("asked", [THEN, LATER])
def test_who_asks_for_a_finished_run_wants_it_trained_anew(path: Path, asked: str) -> None:
    assert found_with(path, lease(job="7"), {ASKED: asked}) is None


def test_times_in_other_zones_are_compared_as_times(path: Path) -> None:
    assert found_with(path, lease(), {ASKED: "2026-11-20T10:30:00+02:00"}) is not None
    assert found_with(path, lease(), {ASKED: "2026-11-20T08:30:00-02:00"}) is None


def test_without_a_word_of_when_it_was_asked_for_that_is_when_it_started(path: Path) -> None:
    assert found_with(path, lease(), {}) is None


@pytest.mark.parametrize(("restarts", "is_answer"), [(3, True), (2, False), (0, False)])
def test_a_job_that_finished_and_came_no_further_has_finished_when_it_is_put_back(
    path: Path, restarts: int, is_answer: bool
) -> None:
    """In the same start, as in one allocation or script, who asks a second time wants it anew."""
    found = found_with(path, lease(job="5", restarts=restarts), {ASKED: LATER})
    assert (found is not None) == is_answer


def test_a_record_of_other_settings_answers_nothing(path: Path) -> None:
    assert found_with(path, lease(job="7"), {ASKED: EARLIER}, RunPlan(threads=2)) is None


def test_what_is_damaged_or_not_there_answers_nothing(path: Path) -> None:
    path.write_text(path.read_text()[:100])
    assert found_with(path, lease(), {ASKED: EARLIER}) is None
    path.unlink()
    assert found_with(path, lease(), {ASKED: EARLIER}) is None
