"""What Slurm says of a holder's job decides; commands stand in that say it (the real ones are in tests/slurm)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourminutes.comm import lease as lease_module
from fourminutes.comm.holder import Lease, Start
from fourminutes.comm.lease import held
from fourminutes.comm.slurm import own_job
from fourminutes.errors import UserError

LAUNCH = [str(Path(sys.executable).with_name("fourminutes")), "launch", "--processes", "1"]
SQUEUE = """#!/bin/sh
for word in "$@"; do case "$word" in --jobs=*) job="${word#--jobs=}";; esac; done
cat "$(dirname "$0")/job-$job" 2> /dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""
# Says what it was called with, to a file.
TOLD = """#!/bin/sh
echo "$(basename "$0") $*" >> "$(dirname "$0")/told"
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with commands, in which `job-7` is what squeue prints of job 7."""
    for name, script in {"squeue": SQUEUE, "scontrol": TOLD, "scancel": TOLD, "srun": SRUN}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    says(tmp_path, "9", "RUNNING", 0)
    return tmp_path


def says(slurm: Path, job: str, state: str, restarts: int) -> None:
    (slurm / f"job-{job}").write_text(f"{state:32}{restarts:<32}2026-11-20T09:00:00\n")


def told(slurm: Path) -> str:
    path = slurm / "told"
    return path.read_text() if path.exists() else ""


def of_job_7(folder: Path, **fields: object) -> Path:
    """The lease of a start elsewhere, in the first start of job 7."""
    holder = {"start": "ab", "started": "2026-11-20T09:00:00+00:00", "host": "elsewhere", "process": 1, "born": 1}
    lease = Lease(holder=Start.model_validate(holder | {"job": "7", "restarts": 0} | fields))
    path = folder / "run.lease.json"
    path.write_text(lease.model_dump_json())
    return path


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_job_that_is_there_holds_its_lease_however_old_the_file(slurm: Path, state: str) -> None:
    path = of_job_7(slurm)
    os.utime(path, (0, 0))
    says(slurm, "7", state, 0)
    with pytest.raises(UserError, match=r"job 7 on elsewhere, since .* is at this run"):
        held(path, waits=False).__enter__()


@pytest.mark.parametrize(("state", "restarts"), [("PENDING", 1), ("RUNNING", 1), ("FAILED", 0), ("TIMEOUT", 0)])
def test_a_job_that_ended_or_was_put_back_does_not(slurm: Path, state: str, restarts: int) -> None:
    path = of_job_7(slurm)
    says(slurm, "7", state, restarts)
    with held(path, waits=False) as own:
        assert [start.job for start in own.began.silent] == ["7"]
        assert own.began.holder.job == "9"
    assert told(slurm) == ""


def test_a_job_that_slurm_has_forgotten_does_not(slurm: Path) -> None:
    with held(of_job_7(slurm), waits=False) as own:
        assert own.began.holder.job == "9"


def test_how_often_it_was_put_back_decides_only_where_slurm_had_said_so(slurm: Path) -> None:
    says(slurm, "7", "RUNNING", 3)
    with pytest.raises(UserError, match="is at this run"):
        held(of_job_7(slurm, restarts=None), waits=False).__enter__()


def test_where_slurm_does_not_answer_the_files_age_decides(slurm: Path) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    path = of_job_7(slurm)
    with pytest.raises(UserError, match="is at this run"):
        held(path, waits=False).__enter__()
    os.utime(path, (0, 0))
    with held(path, waits=False) as own:
        assert own.began.holder.restarts is None


def test_the_job_that_stands_in_the_queue_again_is_cancelled_by_the_one_that_does_its_work(slurm: Path) -> None:
    says(slurm, "7", "PENDING", 1)
    with held(of_job_7(slurm), waits=True):
        assert told(slurm) == "scancel --state=PENDING 7\n"


def test_of_two_that_follow_one_holder_one_waits_for_the_other(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.1)
    path = of_job_7(slurm)
    program = (
        "import sys; from pathlib import Path; from fourminutes.comm import lease; lease._LOOK_EVERY_S = 0.1\n"
        "with lease.held(Path(sys.argv[1]), waits=True):\n"
        "    trace = open(sys.argv[2], 'a'); trace.write('in '); trace.flush()\n"
        "    import time; time.sleep(0.5); trace.write('out '); trace.close()\n"
    )
    # Slow to answer, so that all find the holder gone before any has taken its place.
    (slurm / "squeue").write_text(SQUEUE.replace("for word", "sleep 0.5\nfor word", 1))
    line = [sys.executable, "-c", program, str(path), str(slurm / "trace")]
    starts = [subprocess.Popen(line, env=os.environ | {"SLURM_JOB_ID": job}) for job in ("9", "10", "11")]
    for job in ("10", "11"):
        says(slurm, job, "RUNNING", 0)
    assert [start.wait(60) for start in starts] == [0, 0, 0]
    assert (slurm / "trace").read_text() == "in out " * 3


def test_a_task_of_an_array_is_known_as_that() -> None:
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert own_job(array) == "7_3"
    assert own_job({"SLURM_JOB_ID": "9"}) == "9"


# --- back into the queue ----------------------------------------------------------------------------------------------


def launched(slurm: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`fourminutes launch` of a shell script, in job 9; nothing ends it when it goes back into the queue."""
    (slurm / "scontrol").write_text(TOLD + 'kill -TERM "$PPID"\n')
    line = [*LAUNCH, *options, "--", "sh", "-c", script]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)


def test_what_was_interrupted_goes_back(slurm: Path) -> None:
    path = slurm / "run.lease.json"
    launched(slurm, "exit 75", "--lease", str(path))
    assert told(slurm) == "scontrol requeue 9\n"
    assert Lease.model_validate_json(path.read_text()).losses == 0


@pytest.mark.parametrize(("status", "losses"), [("kill -KILL $$", 1), ("exit 1", None), ("exit 2", None)])
def test_what_was_lost_goes_back_and_what_failed_by_itself_does_not(
    slurm: Path, status: str, losses: int | None
) -> None:
    path = slurm / "run.lease.json"
    launched(slurm, status, "--lease", str(path))
    assert told(slurm) == ("scontrol requeue 9\n" if losses else "")
    if losses:
        assert Lease.model_validate_json(path.read_text()).losses == losses


def test_the_third_loss_in_a_row_is_the_last(slurm: Path) -> None:
    path = slurm / "run.lease.json"
    for restarts in range(3):
        says(slurm, "9", "RUNNING", restarts)
        done = launched(slurm, "kill -KILL $$", "--lease", str(path))
    assert told(slurm) == "scontrol requeue 9\n" * 2
    assert "a process was lost in 3 starts in a row; job 9 does not go back into the queue" in done.stderr
    assert done.returncode == 137


def test_without_a_lease_nothing_goes_back(slurm: Path) -> None:
    assert launched(slurm, "exit 75").returncode == 75
    assert told(slurm) == ""


def test_what_slurm_has_put_back_itself_is_left_to_it(slurm: Path) -> None:
    script = f"printf '%-32s%-32s%s' PENDING 1 2026-11-20T09:00:00 > {slurm}/job-9; exit 75"
    done = launched(slurm, script, "--lease", str(slurm / "run.lease.json"))
    assert done.returncode == 75
    assert "job 9 does not go back into the queue: Slurm has it as pending" in done.stderr
    assert told(slurm) == ""


def test_srun_gets_for_sigterm_what_it_passes_on(slurm: Path) -> None:
    (slurm / "srun").write_text(
        "#!/bin/sh\ntrap 'echo passed; exit 75' USR1\necho ready\nwhile :; do sleep 0.1; done\n"
    )
    line = [*LAUNCH, "--lease", str(slurm / "run.lease.json"), "--", "true"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.terminate()
        assert launcher.stdout.read() == "passed\n"
        assert launcher.wait(60) == 75
    assert told(slurm) == "", "who told it to stop knows what comes next"
