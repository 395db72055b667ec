"""Checkpoints: whole or not at all, the newest whole one wins, only the newest are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fourminutes.errors import UserError
from fourminutes.train.checkpoint import (
    FINAL,
    MARKER,
    SHARED,
    complete_checkpoints,
    drop_all,
    load_newest,
    rank_file,
    save,
    save_weights,
)
from fourminutes.train.ranks import Ranks

ALONE = Ranks(rank=0, world_size=1, group=None)


def save_steps(folder: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        shared = {"model": {"w": torch.full((3,), float(step))}, "step": step}
        save(folder, step, shared=shared, own={"loader": {"blob": b"\x00\xff"}}, ranks=ALONE, keep=keep)


def newest_step(folder: Path) -> int | None:
    saved = load_newest(folder, ALONE)
    return saved.shared["step"] if saved else None


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_comes_back_as_it_was_saved(tmp_path):
    save_steps(tmp_path, 7)
    saved = load_newest(tmp_path, ALONE)
    assert saved is not None
    assert saved.shared["step"] == 7
    assert torch.equal(saved.shared["model"]["w"], torch.full((3,), 7.0))
    assert saved.own == {"loader": {"blob": b"\x00\xff"}}


def test_there_is_none_in_a_new_folder(tmp_path):
    assert newest_step(tmp_path / "new") is None


def test_the_newest_by_number_wins_whatever_the_order_of_writing(tmp_path):
    save_steps(tmp_path, 100, 20, 3)
    assert newest_step(tmp_path) == 100


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(home.name for home in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("part", [SHARED, rank_file(0)])
def test_a_damaged_part_falls_back_to_the_checkpoint_before(tmp_path, capsys, part):
    save_steps(tmp_path, 1, 2)
    flip_a_byte(tmp_path / "step-00000002" / part)
    assert newest_step(tmp_path) == 1
    assert "step-00000002: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("part", [SHARED, rank_file(0)])
def test_a_missing_part_falls_back_to_the_checkpoint_before(tmp_path, part):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / part).unlink()
    assert newest_step(tmp_path) == 1


def test_without_its_marker_a_checkpoint_does_not_count(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / MARKER).unlink()
    assert newest_step(tmp_path) == 1


def test_a_marker_that_is_no_json_falls_back(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / MARKER).write_text("{")
    assert newest_step(tmp_path) == 1


def test_a_damaged_one_does_not_push_a_good_one_out(tmp_path):
    save_steps(tmp_path, 1, 9)
    flip_a_byte(tmp_path / "step-00000009" / SHARED)
    assert newest_step(tmp_path) == 1
    save_steps(tmp_path, 2, keep=1)
    assert newest_step(tmp_path) == 2


def test_a_part_that_cannot_be_read_stops_and_deletes_nothing(tmp_path):
    save_steps(tmp_path, 1, 2)
    unreadable = tmp_path / "step-00000002" / SHARED
    content = unreadable.read_bytes()
    unreadable.unlink()
    unreadable.mkdir()
    with pytest.raises(UserError, match="step-00000002: cannot be read: Is a directory; run the same command again"):
        newest_step(tmp_path)
    unreadable.rmdir()
    unreadable.write_bytes(content)
    assert newest_step(tmp_path) == 2


def test_writing_a_step_again_replaces_it(tmp_path):
    save_steps(tmp_path, 1, 2, 2)
    assert newest_step(tmp_path) == 2
    assert len(complete_checkpoints(tmp_path)) == 2


def test_code_in_a_checkpoint_is_refused(tmp_path):
    save(tmp_path, 1, shared={"step": Path("no plain data")}, own={}, ranks=ALONE, keep=1)
    assert load_newest(tmp_path, ALONE) is None


def test_a_folder_that_cannot_be_made_is_one_clear_line_and_leaves_no_checkpoint(tmp_path):
    (tmp_path / "step-00000001").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_steps(tmp_path, 1)
    assert newest_step(tmp_path) is None


def test_the_final_weights_outlive_the_checkpoints(tmp_path):
    save_steps(tmp_path, 1, 2)
    save_weights(tmp_path, {"w": torch.ones(2)})
    drop_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FINAL]
    assert torch.equal(torch.load(tmp_path / FINAL, weights_only=True)["w"], torch.ones(2))
