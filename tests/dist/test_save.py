"""Checkpoints of several ranks: of all or of none, whoever fails or dies; and read by another number of ranks."""

import io
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from processes import run_ranks

from fourminutes.comm.launch import Launch
from fourminutes.errors import UserError
from fourminutes.train.checkpoint import BEST, MARKER, SHARED, complete_checkpoints, load_newest, rank_file
from fourminutes.train.ranks import Ranks
from fourminutes.train.writer import CheckpointWriter


def save(writer: CheckpointWriter, step: int, rank: int, **kind: bool) -> None:
    """Weights that are all `step`, as far as they are rank 0's, and a part of each rank's own."""
    shared = {"model": {"w": torch.full((1000,), step if rank == 0 else -1)}}
    own = {"buffers": torch.full((1000,), rank)}
    writer.save(step, shared=shared, own=own, **{"at_epoch_end": False, "is_best": False} | kind)


class Found(NamedTuple):
    """The newest checkpoint for a rank: its step, whether the rank's own part is among it, and what was said."""

    step: int | None
    with_own: bool
    said: str


def newest(folder: Path, ranks: Ranks) -> Found:
    with redirect_stderr(io.StringIO()) as said:
        saved = load_newest(folder, ranks)
    if saved is None:
        return Found(None, False, said.getvalue())
    assert saved.shared["model"]["w"].unique().tolist() == [saved.step]
    assert saved.own is None or saved.own["buffers"].unique().tolist() == [ranks.rank]
    return Found(saved.step, saved.own is not None, said.getvalue())


# --- failing together -----------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 1 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failure_to_save(launch: Launch, folder: Path, full: int | None, blocked: Path | None) -> str:
    """Save three times, the second time in vain: the disk of rank `full` is full, or a folder lies in the way."""
    ranks = Ranks.of(launch, timeout_s=60)
    writer = CheckpointWriter(folder, ranks, keep=1)
    save(writer, 1, ranks.rank)
    writer.wait()
    with full_disk() if ranks.rank == full else nullcontext():
        save(writer, 2, ranks.rank, is_best=True)
        with pytest.raises(UserError) as failure:
            writer.wait()
    if blocked is not None and ranks.is_first:
        blocked.rmdir()
    assert newest(folder, ranks) == (1, True, "")
    save(writer, 3, ranks.rank)  # it has been said, and writing goes on
    writer.wait()
    assert newest(folder, ranks) == (3, True, "")
    return str(failure.value)


@pytest.mark.parametrize("blocked", [BEST, *(f"step-00000002/{name}" for name in (MARKER, SHARED, rank_file(1)))])
def test_a_part_that_cannot_be_written_fails_on_every_rank(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / blocked
    path.mkdir(parents=True)
    first, second = run_ranks(failure_to_save, 2, tmp_path, None, path)
    assert first == second
    assert first == f"{path}: cannot be written: a folder is in the way of a file of that name; choose another name"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank_fails_on_every_rank(tmp_path: Path, rank: int) -> None:
    first, second = run_ranks(failure_to_save, 2, tmp_path, rank, None)
    assert first == second
    assert first == f"{tmp_path}/step-00000002: cannot be written: File too large; choose another folder for work"
    assert not (tmp_path / BEST).exists()  # no checkpoint speaks of these weights


def failure_to_load(launch: Launch, folder: Path) -> str:
    ranks = Ranks.of(launch, timeout_s=60)
    with CheckpointWriter(folder, ranks, keep=1) as writer:
        save(writer, 1, ranks.rank)
    if ranks.rank == 1:
        (folder / "step-00000001" / rank_file(1)).unlink()
        (folder / "step-00000001" / rank_file(1)).mkdir()
    with pytest.raises(UserError) as failure:
        load_newest(folder, ranks)
    return str(failure.value)


def test_a_part_that_cannot_be_read_fails_on_every_rank_and_deletes_nothing(tmp_path: Path) -> None:
    first, second = run_ranks(failure_to_load, 2, tmp_path)
    assert first == second
    assert "step-00000001: cannot be read: Is a directory; run the same command again" in first
    assert len(complete_checkpoints(tmp_path)) == 1


def find_with_a_part_damaged(launch: Launch, folder: Path) -> Found:
    ranks = Ranks.of(launch, timeout_s=60)
    with CheckpointWriter(folder, ranks, keep=2) as writer:
        save(writer, 1, ranks.rank)
        save(writer, 2, ranks.rank)
    if ranks.rank == 1:
        (folder / "step-00000002" / rank_file(1)).write_bytes(b"")
    return newest(folder, ranks)


def test_damage_to_one_rank_s_part_sends_every_rank_to_the_checkpoint_before(tmp_path: Path) -> None:
    said = f"fourminutes: {tmp_path}/step-00000002: is damaged; looking for the checkpoint before it\n"
    assert run_ranks(find_with_a_part_damaged, 2, tmp_path) == [(1, True, said), (1, True, "")]


# --- dying alone ----------------------------------------------------------------------------------------------------


def outlive(launch: Launch, folder: Path, dying: int) -> None:
    """One rank dies as its part of step 2 is about to get its name; the others hear of it, and are free to end."""
    ranks = Ranks.of(launch, timeout_s=60)
    with CheckpointWriter(folder, ranks, keep=1) as writer:
        save(writer, 1, ranks.rank)
        writer.wait()
        if ranks.rank == dying:
            sys.addaudithook(die_at_rename)
        save(writer, 2, ranks.rank)
        with pytest.raises(RuntimeError):
            writer.wait()


def die_at_rename(event: str, args: tuple[Any, ...]) -> None:
    if event == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)


def find(launch: Launch, folder: Path) -> Found:
    return newest(folder, Ranks.of(launch, timeout_s=60))


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_leaves_the_checkpoint_before_and_no_other_rank_hanging(tmp_path: Path, dying: int) -> None:
    with pytest.raises(AssertionError) as failure:
        run_ranks(outlive, 2, tmp_path, dying)
    assert str(failure.value) == f"rank {dying}: ended without a result"
    assert run_ranks(find, 2, tmp_path) == [(1, True, "")] * 2


# --- beside the training --------------------------------------------------------------------------------------------


def talk_meanwhile(launch: Launch, folder: Path) -> list[int]:
    """Rank 0's thread is held up by a pipe among the leftovers that it looks at; rank 1's waits for it."""
    ranks = Ranks.of(launch, timeout_s=60)
    pipe = folder / "step-00000001" / f".{SHARED}.halt.partial"
    if ranks.is_first:
        pipe.parent.mkdir()
        os.mkfifo(pipe)
    ranks.gather(None)
    with CheckpointWriter(folder, ranks, keep=1) as writer:
        save(writer, 1, ranks.rank)
        heard = [sum(ranks.gather(ranks.rank + number)) for number in range(100)]
        assert complete_checkpoints(folder) == []
        ranks.gather(None)
        if ranks.is_first:
            pipe.open("wb").close()
    assert newest(folder, ranks) == (1, True, "")
    return heard


def test_ranks_can_talk_while_their_checkpoint_is_under_way(tmp_path: Path) -> None:
    assert run_ranks(talk_meanwhile, 2, tmp_path) == [[2 * number + 1 for number in range(100)]] * 2


# --- another number of processes ------------------------------------------------------------------------------------


def save_steps(launch: Launch, folders: dict[Path, list[int]], ends: list[int]) -> None:
    ranks = Ranks.of(launch, timeout_s=60)
    for folder, steps in folders.items():
        with CheckpointWriter(folder, ranks, keep=1) as writer:
            for step in steps:
                save(writer, step, ranks.rank, at_epoch_end=step in ends)


def find_all(launch: Launch, folders: list[Path]) -> list[Found]:
    ranks = Ranks.of(launch, timeout_s=60)
    return [newest(folder, ranks) for folder in folders]


@pytest.mark.parametrize(("before", "now"), [(4, 2), (2, 4)])
def test_another_number_of_processes_goes_on_from_an_epoch_s_end_only(tmp_path: Path, before: int, now: int) -> None:
    interrupted, ended, begun = folders = [tmp_path / name for name in ("interrupted", "ended", "begun")]
    run_ranks(save_steps, before, {interrupted: [5, 6, 7], ended: [5], begun: [3]}, [5])
    first, *others = run_ranks(find_all, now, folders)
    by = f"written by {before} processes, now {now}"
    assert first == [
        (5, False, f"fourminutes: {interrupted}/step-00000007: {by}: the interrupted epoch starts again from step 5\n"),
        (5, False, f"fourminutes: {ended}/step-00000005: {by}: going on from there, the end of an epoch\n"),
        (
            None,
            False,
            f"fourminutes: {begun}/step-00000003: {by}: no usable end of an epoch is saved, so the run starts anew\n",
        ),
    ]
    assert others == [[(step, False, "") for step, _, _ in first]] * (now - 1)

    # Those now go on, but not as far as those before came: both find their own.
    run_ranks(save_steps, now, {interrupted: [6]}, [])
    first, *_ = run_ranks(find_all, now, [interrupted])
    assert first == [(6, True, f"fourminutes: {interrupted}/step-00000007: {by}: going on from step 6\n")]
    assert run_ranks(find_all, before, [interrupted]) == [[(7, True, "")]] * before
