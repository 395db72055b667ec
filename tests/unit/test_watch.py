"""The watch: a board that ranks reach over a socket; and where a rank is, which they tell."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fourminutes.comm.board import Board
from fourminutes.comm.watch import BOARD, Watch
from fourminutes.comm.watched import in_a_line, is_of_collectives, watched
from fourminutes.comm.whereabouts import HERE, Place, Whereabouts
from fourminutes.errors import UserError

# One rank of two, under watch while it does what is handed to it.
RANK = """
import os, signal, sys, time
from fourminutes.comm.watched import watched
from fourminutes.errors import Interrupted, RunFailed
with watched(timeout_s=60, again="start again"):
    exec(sys.argv[1])
"""


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch(Board(2, host="here"), "127.0.0.1")
    yield made
    made.close()


def rank(watch: Watch, number: int, does: str) -> subprocess.Popen[str]:
    variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}
    variables |= {"MASTER_ADDR": "127.0.0.1", BOARD: watch.at("127.0.0.1")}
    environ = os.environ | {name: str(value) for name, value in variables.items()}
    return subprocess.Popen([sys.executable, "-c", RANK, does], env=environ, stderr=subprocess.PIPE, text=True)


def port_of(watch: Watch) -> int:
    return int(watch.at("").rpartition(":")[2])


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Exit status and the last line on stderr of each."""
    said = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    return [(process.returncode, (lines or [""])[-1]) for process, lines in zip(processes, said, strict=True)]


# --- the ranks and the watch ----------------------------------------------------------------------------------------


def test_who_is_killed_is_named_once_and_the_other_ends_though_it_waits(watch, capfd):
    ranks = rank(watch, 0, "os.kill(os.getpid(), signal.SIGKILL)"), rank(watch, 1, "signal.pause()")
    assert ended(*ranks) == [(-signal.SIGKILL, ""), (1, "")]
    line = f"fourminutes: rank 0 on {platform.node()} was lost (its line is broken) in the start; start again\n"
    assert capfd.readouterr().err == line


def test_who_fails_by_itself_shows_of_what_and_the_other_ends(watch, capfd):
    ranks = rank(watch, 0, "signal.pause()"), rank(watch, 1, "1 / 0")
    assert ended(*ranks) == [(1, ""), (1, "ZeroDivisionError: division by zero")]
    failed = f"fourminutes: rank 1 on {platform.node()} failed in the start: ZeroDivisionError: division by zero;"
    assert capfd.readouterr().err == f"{failed} start again\n"


def test_a_failure_of_a_collective_is_shown_by_nobody_but_the_watch(watch, capfd):
    fail = "raise RuntimeError('[gloo/pair.cc:534] Connection closed by peer')"
    assert ended(rank(watch, 0, fail), rank(watch, 1, fail)) == [(1, ""), (1, "")]
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "RuntimeError: [gloo/pair.cc:534] Connection closed by peer; start again" in said


def test_what_ends_in_order_is_no_news(watch, capfd):
    ranks = rank(watch, 0, "pass"), rank(watch, 1, "raise Interrupted('saved')")
    assert ended(*ranks) == [(0, ""), (1, "fourminutes.errors.Interrupted: saved")]
    assert watch.close() is None
    assert capfd.readouterr().err == ""


def test_the_ranks_end_when_whoever_watches_does():
    watch = Watch(Board(2), "127.0.0.1")
    waiting = rank(watch, 0, "sys.stderr.write('.'); sys.stderr.flush(); signal.pause()")
    assert waiting.stderr is not None
    assert waiting.stderr.read(1) == "."
    watch.close()
    assert ended(waiting) == [(1, "")]


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\n", b"[1]\n", b'{"rank": 0}\n', b'{"rank": 2, "host": "n", "timeout_s": 1}\n', b"x" * 100_000],
)
def test_what_no_rank_would_say_is_hung_up_on_and_does_no_harm(watch, capfd, nonsense):
    with socket.create_connection(("127.0.0.1", port_of(watch))) as stranger:
        stranger.sendall(nonsense)
        with suppress(ConnectionResetError):  # where it had not read all
            assert stranger.recv(1) == b""
    ranks = rank(watch, 0, "pass"), rank(watch, 1, "pass")
    assert ended(*ranks) == [(0, ""), (0, "")]
    assert watch.close() is None
    assert capfd.readouterr().err == ""


def test_a_watch_that_cannot_be_reached_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        board = f"2@127.0.0.1:{closed.getsockname()[1]}"
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(BOARD, board)
    with pytest.raises(UserError, match=rf"{BOARD}: {board} cannot be reached"), watched(timeout_s=5, again=""):
        pytest.fail("nobody watches")


def test_a_process_of_its_own_watches_till_all_have_gone(tmp_path: Path):
    command = [sys.executable, "-m", "fourminutes.comm.watch", "2", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        size, _, port = process.stdout.readline().strip().partition("@127.0.0.1:")
        assert size == "2"
        with socket.create_connection(("127.0.0.1", int(port))) as first:
            hello = {"rank": 0, "host": "n0", "timeout_s": 60, "again": "start again"}
            first.sendall(json.dumps(hello).encode() + b"\n")
            first.sendall(json.dumps({"place": vars(Place(3, "evaluation", 7))}).encode() + b"\n")
            process.send_signal(signal.SIGTERM)  # which is for the ranks
        assert process.stderr.read() == (
            "fourminutes: rank 0 on n0 was lost (its line is broken) in step 7, evaluation; start again\n"
        )
        assert process.wait(60) == 0


# --- where a rank is ------------------------------------------------------------------------------------------------


def test_places_follow_one_another_along_the_way():
    here = Whereabouts()
    places = [here.place]
    here.begin("set-up")
    places.append(here.place)
    here.begin_step(1)
    here.begin("input")
    places.append(here.place)
    here.begin("forward and backward pass")
    places.append(here.place)
    for bucket in range(2):
        for stage in ("cast to the wire", "reduce, within", "all_reduce, across", "broadcast, within", "divide"):
            here.reduce(bucket, 2, stage)
            places.append(here.place)
        here.reduce(bucket, 2, "")
    here.begin("update")
    places.append(here.place)
    assert [place.order for place in places] == sorted({place.order for place in places})
    assert [str(places[number]) for number in (0, 1, 2, 5, -1)] == [
        "the start",
        "set-up",
        "step 1, input",
        "step 1, bucket 1 of 2, stage reduce, within",
        "step 1, update",
    ]


def test_of_several_buckets_under_way_the_first_is_the_place():
    here = Whereabouts()
    for bucket in (2, 1, 3):
        here.reduce(bucket, 4, "all_reduce, world")
    assert here.place.bucket == 1
    here.reduce(1, 4, "")
    assert here.place.bucket == 2
    here.begin("update")
    assert here.place.bucket is None


def test_what_is_told_of_a_place_is_all_of_it():
    HERE.reduce(1, 3, "all_reduce, world")
    place = HERE.place
    HERE.reduce(1, 3, "")
    assert Place(**json.loads(json.dumps(vars(place)))) == place


# --- errors ---------------------------------------------------------------------------------------------------------


def test_how_collectives_fail_is_told_from_other_errors():
    from torch import distributed

    assert is_of_collectives(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection reset"))
    assert is_of_collectives(distributed.DistNetworkError("the client socket has timed out"))
    assert is_of_collectives(distributed.DistBackendError("NCCL error: remote process exited"))
    assert not is_of_collectives(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_of_collectives(ValueError("gloo"))
    outer = ValueError("bad checkpoint")
    outer.__cause__ = RuntimeError("gloo: Connection closed by peer")
    assert is_of_collectives(outer)


def test_an_error_in_a_line_is_its_kind_and_its_first_words():
    assert in_a_line(ValueError("\n  what went wrong\nand where")) == "ValueError: what went wrong"
    assert in_a_line(AssertionError()) == "AssertionError"
