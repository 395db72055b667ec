"""Checkpoints: whole or not at all, the newest whole one wins, only the newest are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from fourminutes.errors import UserError
from fourminutes.train.checkpoint import (
    BEST,
    FINAL,
    MARKER,
    SHARED,
    complete_checkpoints,
    drop_all,
    load_newest,
    rank_file,
    save_weights,
)
from fourminutes.train.ranks import Ranks
from fourminutes.train.writer import CheckpointWriter

ALONE = Ranks(rank=0, world_size=1, group=None)
PARTS = [SHARED, rank_file(0), MARKER]


def save_steps(folder: Path, *steps: int, keep: int = 10, ends: tuple[int, ...] = (), best: tuple[int, ...] = ()):
    with CheckpointWriter(folder, ALONE, keep=keep) as writer:
        for step in steps:
            shared = {"model": {"w": torch.full((3,), float(step))}, "step": step}
            own = {"loader": {"blob": b"\x00\xff"}}
            writer.save(step, shared=shared, own=own, at_epoch_end=step in ends, is_best=step in best)


def newest_step(folder: Path) -> int | None:
    saved = load_newest(folder, ALONE)
    return saved.shared["step"] if saved else None


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was_saved(tmp_path):
    save_steps(tmp_path, 7, ends=(7,))
    saved = load_newest(tmp_path, ALONE)
    assert saved is not None
    assert (saved.step, saved.world_size, saved.at_epoch_end) == (7, 1, True)
    assert saved.shared["step"] == 7
    assert torch.equal(saved.shared["model"]["w"], torch.full((3,), 7.0))
    assert saved.own == {"loader": {"blob": b"\x00\xff"}}


def test_there_is_none_in_a_new_folder(tmp_path):
    assert newest_step(tmp_path / "new") is None


def test_the_newest_by_number_wins_whatever_the_order_of_writing(tmp_path):
    save_steps(tmp_path, 100, 20, 3)
    assert newest_step(tmp_path) == 100


def test_writing_a_step_again_replaces_it(tmp_path):
    save_steps(tmp_path, 1, 2)
    save_steps(tmp_path, 2, ends=(2,))
    assert load_newest(tmp_path, ALONE).at_epoch_end
    assert len(complete_checkpoints(tmp_path)) == 2


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "stride"), [(SHARED, 29), (rank_file(0), 29), (MARKER, 1)])
def test_a_flipped_bit_anywhere_falls_back_to_the_checkpoint_before(tmp_path, capsys, part, stride):
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / part
    whole = path.read_bytes()
    for place in range(0, len(whole), stride):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert newest_step(tmp_path) == 1, place
        assert capsys.readouterr().err.endswith("step-00000002: is damaged; looking for the checkpoint before it\n")
    path.write_bytes(whole)
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("part", PARTS)
def test_a_part_cut_short_falls_back_to_the_checkpoint_before(tmp_path, part):
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / part
    whole = path.read_bytes()
    # The last byte of the marker is the end of its line, and says nothing.
    for length in (0, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert newest_step(tmp_path) == 1, length


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_falls_back_to_the_checkpoint_before(tmp_path, part):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / part).unlink()
    assert newest_step(tmp_path) == 1


def test_a_checkpoint_of_the_form_before_counts_as_damaged(tmp_path, capsys):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / MARKER).write_text('{"shared.pt": "00", "rank-00000.pt": "00"}')
    assert newest_step(tmp_path) == 1
    assert "step-00000002: is damaged" in capsys.readouterr().err


def test_a_checkpoint_under_another_step_s_name_does_not_count(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000009")
    assert newest_step(tmp_path) == 1


def test_reading_changes_nothing(tmp_path):
    save_steps(tmp_path, 1, 2)
    missing = tmp_path / "step-00000002" / SHARED
    content = missing.read_bytes()
    missing.unlink()
    assert newest_step(tmp_path) == 1
    missing.write_bytes(content)
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_cannot_be_read_stops_and_deletes_nothing(tmp_path, part):
    save_steps(tmp_path, 1, 2)
    unreadable = tmp_path / "step-00000002" / part
    content = unreadable.read_bytes()
    unreadable.unlink()
    unreadable.mkdir()
    with pytest.raises(UserError, match="step-00000002: cannot be read: Is a directory; run the same command again"):
        newest_step(tmp_path)
    unreadable.rmdir()
    unreadable.write_bytes(content)
    assert newest_step(tmp_path) == 2


def test_code_in_a_checkpoint_is_refused(tmp_path):
    save_steps(tmp_path, 1)
    shared, marker = (tmp_path / "step-00000001" / part for part in (SHARED, MARKER))
    before = hashlib.sha256(shared.read_bytes()).hexdigest()
    torch.save({"step": Path("no plain data")}, shared)
    after = hashlib.sha256(shared.read_bytes()).hexdigest()
    marker.write_text(marker.read_text().replace(before, after))
    assert newest_step(tmp_path) is None


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep=2)
    assert kept(tmp_path) == ["step-00000003", "step-00000004"]


def test_the_newest_of_an_epoch_s_end_is_kept_beside_them(tmp_path):
    save_steps(tmp_path, 5, 7, 10, 12, 14, 16, keep=2, ends=(5, 10))
    assert kept(tmp_path) == ["step-00000010", "step-00000014", "step-00000016"]
    save_steps(tmp_path, 20, keep=2, ends=(20,))
    assert kept(tmp_path) == ["step-00000016", "step-00000020"]


def test_what_a_killed_writer_left_goes_with_the_checkpoints_of_its_time(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / MARKER).unlink()
    save_steps(tmp_path, 3, 4, keep=1)
    assert kept(tmp_path) == ["step-00000004"]


def test_a_damaged_one_does_not_push_a_good_one_out(tmp_path):
    save_steps(tmp_path, 1, 9)
    (tmp_path / "step-00000009" / SHARED).write_bytes(b"")
    assert newest_step(tmp_path) == 1
    save_steps(tmp_path, 2, keep=1)
    assert newest_step(tmp_path) == 2


def test_nothing_is_dropped_while_it_is_unclear_what_is_whole(tmp_path):
    save_steps(tmp_path, 1, 2, ends=(1,))
    marker = tmp_path / "step-00000001" / MARKER
    content = marker.read_bytes()
    marker.unlink()
    marker.mkdir()
    save_steps(tmp_path, 3, keep=1)
    assert kept(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    marker.rmdir()
    marker.write_bytes(content)
    save_steps(tmp_path, 4, keep=1)
    assert kept(tmp_path) == ["step-00000001", "step-00000004"]


def test_a_file_in_a_checkpoint_s_place_is_no_obstacle(tmp_path):
    (tmp_path / "step-00000001").write_text("not ours")
    save_steps(tmp_path, 2, 3, keep=1)
    assert kept(tmp_path) == ["step-00000001", "step-00000003"]
    drop_all(tmp_path)
    assert kept(tmp_path) == ["step-00000001"]


def test_the_best_weights_are_those_of_the_last_checkpoint_that_was_called_best(tmp_path):
    save_steps(tmp_path, 1)
    assert not (tmp_path / BEST).exists()
    save_steps(tmp_path, 2, 3, best=(2,))
    assert torch.equal(torch.load(tmp_path / BEST, weights_only=True)["w"], torch.full((3,), 2.0))


def test_best_and_final_weights_outlive_the_checkpoints(tmp_path):
    save_steps(tmp_path, 1, 2, best=(2,))
    save_weights(tmp_path / FINAL, {"w": torch.ones(2)})
    drop_all(tmp_path)
    assert kept(tmp_path) == [BEST, FINAL]
    assert torch.equal(torch.load(tmp_path / FINAL, weights_only=True)["w"], torch.ones(2))
