"""One start of a run at a time."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fourminutes.comm.holder import Lease
from fourminutes.comm.lease import LEASE, held
from fourminutes.errors import Interrupted, RunFailed, UserError

HOLD = """
import sys
from pathlib import Path
from fourminutes.comm.lease import held
with held(Path(sys.argv[1]), waits=False) as own:
    print(own.start, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease, until its stdin is closed."""
    line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "run.lease.json"


def read(path: Path) -> Lease:
    return Lease.model_validate_json(path.read_text())


def written(path: Path, **changed: object) -> None:
    """The lease with another holder."""
    lease = read(path)
    path.write_text(lease.model_copy(update={"holder": lease.holder.model_copy(update=changed)}).model_dump_json())


def test_it_says_who_and_is_gone_at_the_end(path: Path) -> None:
    with held(path, waits=False) as own:
        holder = read(path).holder
        assert (holder.start, holder.process, holder.host) == (own.start, os.getpid(), platform.node())
        assert read(path).silent == ()
    assert not path.exists()


def test_a_second_start_ends_at_once_with_one_line_that_names_the_first(path: Path) -> None:
    with another(path) as first:
        with pytest.raises(
            UserError, match=rf"process {first.pid} on {platform.node()}, since .* is at this run; wait"
        ):
            held(path, waits=False).__enter__()
        assert read(path).holder.process == first.pid


def test_a_second_start_that_waits_gets_its_turn(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another(path) as first:
        assert first.stdin is not None
        threading.Timer(0.1, first.stdin.close).start()
        with held(path, waits=True) as own:
            assert first.wait(60) == 0
            assert read(path).holder.start == own.start
            assert read(path).silent == ()
    assert f"process {first.pid} on" in capsys.readouterr().err


def test_of_one_that_was_killed_the_next_start_takes_over_at_once_and_tells(path: Path) -> None:
    with another(path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        killed = read(path).holder
        with held(path, waits=False):
            assert read(path).silent == (killed,)
        assert not path.exists()


def test_a_process_number_that_has_gone_to_another_process_is_not_the_holder(path: Path) -> None:
    with held(path, waits=False) as own:
        written(path, start="other", born=1)
        with held(path, waits=False) as later:
            assert later.start != own.start


def test_of_a_start_elsewhere_its_age_decides(path: Path) -> None:
    with held(path, waits=False):
        written(path, start="other", host="elsewhere")
        with pytest.raises(UserError, match="on elsewhere"):
            held(path, waits=False).__enter__()
        os.utime(path, (0, 0))
        with held(path, waits=False):
            assert [start.host for start in read(path).silent] == ["elsewhere"]


def test_who_lost_it_is_told_before_anything_counts(path: Path) -> None:
    with held(path, waits=False) as own:
        own.require()
        written(path, start="other")
        with pytest.raises(RunFailed, match="another start of this run has taken over"):
            own.require()
    assert read(path).holder.start == "other", "another's lease was removed"


def test_losses_are_counted_until_a_start_ends_in_another_way(path: Path) -> None:
    with held(path, waits=False) as own:
        own.leave(losses=1)
    assert read(path).losses == 1
    written(path, born=1)
    with held(path, waits=False) as own:
        assert own.began.losses == 0, "of another job's, none is counted"
    assert not path.exists()


def test_of_a_failure_the_next_start_is_told(path: Path) -> None:
    with pytest.raises(RunFailed), held(path, waits=False) as failed:
        raise RunFailed("the run diverged")
    with held(path, waits=False):
        assert [start.start for start in read(path).silent] == [failed.start]


@pytest.mark.parametrize("error", [Interrupted("saved"), UserError("no such run")])
def test_what_has_said_its_last_word_leaves_nothing(path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), held(path, waits=False):
        raise error
    assert not path.exists()


def test_processes_that_its_holder_started_use_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another(path):
        monkeypatch.setenv(LEASE, read(path).holder.start)
        with held(path, waits=False) as given:
            assert given.began == read(path)
        assert path.exists()


def test_half_a_lease_is_somebodys_while_it_is_young(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(UserError, match="another start is at this run"):
        held(path, waits=False).__enter__()
    os.utime(path, (0, 0))
    with held(path, waits=False) as own:
        assert read(path).holder.start == own.start


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        held(tmp_path / "work" / "run.lease.json", waits=False).__enter__()
