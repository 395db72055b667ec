"""A checkpoint that one rank fails to write or to read fails on all of them alike."""

from pathlib import Path

import pytest
import torch
from processes import run_ranks

from fourminutes.comm.launch import Launch
from fourminutes.errors import UserError
from fourminutes.train.checkpoint import MARKER, complete_checkpoints, load_newest, rank_file, save
from fourminutes.train.ranks import Ranks


def save_one(folder: Path, ranks: Ranks) -> None:
    save(folder, 1, shared={"w": torch.ones(2)}, own={"rank": ranks.rank}, ranks=ranks, keep=1)


def failure_to_save(launch: Launch, folder: Path) -> str:
    with pytest.raises(UserError) as failure:
        save_one(folder, Ranks.of(launch, timeout_s=60))
    return str(failure.value)


@pytest.mark.parametrize("blocked", [MARKER, rank_file(1)])
def test_a_part_that_cannot_be_written_fails_on_every_rank(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / "step-00000001" / blocked
    path.mkdir(parents=True)
    first, second = run_ranks(failure_to_save, 2, tmp_path)
    assert first == second
    assert f"{path}: cannot be written: a folder is in the way" in first


def failure_to_load(launch: Launch, folder: Path) -> str:
    ranks = Ranks.of(launch, timeout_s=60)
    save_one(folder, ranks)
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
