"""Writing beside the training: the training may go on at once, and whatever happens, what was safe stays so."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forkserver import PROCESSES
from torch import Tensor, nn

from fourminutes.errors import RunFailed, UserError
from fourminutes.train.checkpoint import BEST, MARKER, SHARED, State, complete_checkpoints, load_newest, rank_file
from fourminutes.train.ranks import Ranks
from fourminutes.train.snapshot import Snapshots
from fourminutes.train.writer import CheckpointWriter

ALONE = Ranks(rank=0, world_size=1, group=None)


def save(writer: CheckpointWriter, step: int, **states: State) -> None:
    parts = {"shared": {}, "own": {}} | states
    writer.save(step, **parts, at_epoch_end=False, is_best=False)


def hold(folder: Path, step: int, part: str) -> Path:
    """Halt the thread where it begins to write `part`, until `release`.

    It looks at what killed writers have left of the part before. Of a pipe there it gets to see nothing until
    somebody opens the other end.
    """
    pipe = folder / f"step-{step:08d}" / f".{part}.halt.partial"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    return pipe


def release(pipe: Path) -> None:
    pipe.open("wb").close()


def marker(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}" / MARKER


# --- the copy -------------------------------------------------------------------------------------------------------


def test_what_changes_after_the_call_is_written_as_it_was(tmp_path):
    weight, flat = torch.arange(6.0).view(2, 3), torch.zeros(8, dtype=torch.float16)
    shared = {"model": {"w": nn.Parameter(weight)}, "groups": [{"rate": 0.5, "views": (flat[:4], flat[4:])}]}
    own = {"random": torch.get_rng_state(), "losses": [1.0, 2.0]}
    pipe = hold(tmp_path, 1, rank_file(0))
    with CheckpointWriter(tmp_path, ALONE, keep=1) as writer:
        save(writer, 1, shared=shared, own=own)
        weight.fill_(-1)
        flat.fill_(-1)
        shared["groups"][0]["rate"] = -1.0
        own["losses"].append(3.0)
        assert not marker(tmp_path, 1).exists()
        release(pipe)
    saved = load_newest(tmp_path, ALONE)
    assert torch.equal(saved.shared["model"]["w"], torch.arange(6.0).view(2, 3))
    assert saved.shared["groups"][0]["rate"] == 0.5
    assert [view.tolist() for view in saved.shared["groups"][0]["views"]] == [[0] * 4] * 2
    assert saved.own["losses"] == [1.0, 2.0]


def test_a_copy_has_the_bits_the_dtype_and_the_strides_and_only_what_its_view_shows():
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    buckets = torch.arange(1000)
    copied = Snapshots().take({"images": images, "part": buckets[10:20]})
    assert torch.equal(copied["images"], images)
    assert (copied["images"].dtype, copied["images"].stride()) == (images.dtype, images.stride())
    assert copied["part"].untyped_storage().nbytes() == 10 * 8


def test_the_memory_of_one_copy_serves_the_next_as_far_as_it_fits():
    snapshots = Snapshots()
    first = snapshots.take({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(2, 3), "d": torch.zeros(4)})
    where = {name: tensor.data_ptr() for name, tensor in first.items()}
    state = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64), "c": torch.ones(3, 2).T, "d": torch.ones(5)}
    again = snapshots.take(state | {"e": torch.ones(6)})
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert (again["b"].dtype, again["c"].stride(), again["e"].sum()) == (torch.int64, (1, 2), 6)
    assert again["a"].data_ptr() == where["a"]


def test_optimizer_and_model_come_back_as_they_are(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    shared = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with CheckpointWriter(tmp_path, ALONE, keep=1) as writer:
        save(writer, 1, shared=shared)
    saved = load_newest(tmp_path, ALONE).shared
    assert flat(saved) == flat(shared)


def flat(state: Any) -> Any:
    """The state with lists for tensors, so that it compares."""
    if isinstance(state, Tensor):
        return [str(state.dtype), state.tolist()]
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize("value", [Path("a path"), np.float64(1), {1, 2}, signal.SIGTERM, torch.float32])
def test_what_could_not_be_read_again_is_refused_before_anything_is_written(tmp_path, value):
    with CheckpointWriter(tmp_path, ALONE, keep=1) as writer, pytest.raises(TypeError, match="is no plain value"):
        save(writer, 1, own={"deep": [{"down": (value,)}]})
    assert list(tmp_path.iterdir()) == []


# --- one after another ----------------------------------------------------------------------------------------------


def test_the_next_save_waits_for_the_one_under_way(tmp_path):
    first_was_safe = []

    class Witness(dict):
        """A state that notes when it is copied."""

        def items(self):
            first_was_safe.append(marker(tmp_path, 1).exists())
            return super().items()

    pipe = hold(tmp_path, 1, SHARED)
    with CheckpointWriter(tmp_path, ALONE, keep=2) as writer:
        save(writer, 1)
        assert not marker(tmp_path, 1).exists()
        releasing = threading.Thread(target=release, args=(pipe,))
        releasing.start()
        save(writer, 2, own=Witness())
        releasing.join()
    assert first_was_safe == [True]
    assert marker(tmp_path, 2).exists()


def test_after_wait_the_checkpoint_is_safe(tmp_path):
    writer = CheckpointWriter(tmp_path, ALONE, keep=1)
    writer.wait()
    save(writer, 1, shared={"step": 1})
    writer.wait()
    assert load_newest(tmp_path, ALONE).shared == {"step": 1}


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failure_comes_once_with_the_next_call_and_leaves_what_was_safe(tmp_path):
    (tmp_path / "step-00000002").write_text("a file in the way")
    writer = CheckpointWriter(tmp_path, ALONE, keep=1)
    save(writer, 1)
    save(writer, 2)
    with pytest.raises(UserError, match=r"step-00000002.*: cannot be written: a file is in the way"):
        save(writer, 3)
    assert load_newest(tmp_path, ALONE).step == 1
    save(writer, 4)
    writer.wait()
    assert load_newest(tmp_path, ALONE).step == 4


def test_a_failure_of_the_last_one_ends_the_block(tmp_path):
    (tmp_path / "step-00000001").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be written"), CheckpointWriter(tmp_path, ALONE, keep=1) as writer:
        save(writer, 1)


def save_and_fail_elsewhere(folder: Path) -> None:
    with CheckpointWriter(folder, ALONE, keep=1) as writer:
        save(writer, 1)
        raise ZeroDivisionError


def test_an_exception_elsewhere_lets_the_last_one_finish(tmp_path):
    with pytest.raises(ZeroDivisionError):
        save_and_fail_elsewhere(tmp_path)
    assert load_newest(tmp_path, ALONE).step == 1


def test_an_exception_elsewhere_is_not_hidden_by_a_failure(tmp_path):
    (tmp_path / "step-00000001").write_text("a file in the way")
    with pytest.raises(ZeroDivisionError):
        save_and_fail_elsewhere(tmp_path)


def save_without_an_end(folder: Path) -> None:
    hold(folder, 1, SHARED)
    save(CheckpointWriter(folder, ALONE, keep=1), 1)


def test_a_process_ends_though_its_thread_does_not(tmp_path):
    process = PROCESSES.Process(target=save_without_an_end, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    process.kill()
    assert process.exitcode == 0
    assert load_newest(tmp_path, ALONE) is None


# --- sudden death ---------------------------------------------------------------------------------------------------


def save_weights_of(folder: Path, *steps: int, keep: int) -> None:
    """Checkpoints of weights that are all `step`; step 1 is at an epoch's end, and each is better than all before."""
    with CheckpointWriter(folder, ALONE, keep=keep) as writer:
        for step in steps:
            shared = {"model": {"w": torch.full((20_000,), step)}}
            writer.save(step, shared=shared, own={}, at_epoch_end=step == 1, is_best=True)


def save_and_die_at(folder: Path, number: int) -> None:
    """Save step 3, but die of SIGKILL where the thread is about to do something to a file for the n-th time."""
    numbers = count(1)

    def die(event: str, args: tuple[Any, ...]) -> None:
        concerns_files = event.startswith(("os.", "shutil.")) or event in {"open", "fcntl.flock"}
        if concerns_files and threading.current_thread().name == "checkpoint" and next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    save_weights_of(folder, 3, keep=1)


def save_and_die_of_size(folder: Path, file_bytes: int) -> None:
    """Save step 3, but die in the middle of the first file that grows beyond `file_bytes`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    save_weights_of(folder, 3, keep=1)


def exit_status(target: Any, folder: Path, argument: int) -> int | None:
    shutil.rmtree(folder, ignore_errors=True)
    save_weights_of(folder, 1, 2, keep=2)
    process = PROCESSES.Process(target=target, args=(folder, argument))
    process.start()
    process.join()
    return process.exitcode


def step_after_death(folder: Path) -> int:
    """The step of the newest checkpoint; makes sure that it is whole, and that one can go on from there."""
    saved = load_newest(folder, ALONE)
    assert saved.shared["model"]["w"].unique().tolist() == [saved.step]
    assert torch.load(folder / BEST, weights_only=True)["w"].unique().item() >= saved.step
    files = {SHARED, rank_file(0), MARKER}
    assert all({path.name for path in home.iterdir()} == files for home in complete_checkpoints(folder))
    save_weights_of(folder, 3, keep=1)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {BEST} | {f"step-{step:08d}/{name}" for step in (1, 3) for name in files}
    return saved.step


def test_killed_before_any_step_of_writing_it_leaves_the_checkpoint_before_or_the_new_one(tmp_path):
    newest = []
    for number in count(1):
        if exit_status(save_and_die_at, tmp_path / "run", number) == 0:
            break
        newest.append(step_after_death(tmp_path / "run"))
    assert newest == sorted(newest)  # once the new one is safe, it stays so
    assert set(newest) == {2, 3}
    assert len(newest) > 30
    assert step_after_death(tmp_path / "run") == 3


@pytest.mark.parametrize("file_bytes", [0, 1, 200, 4096, 50_000, 80_000])
def test_killed_in_the_middle_of_a_file_it_leaves_the_checkpoint_before(tmp_path, file_bytes):
    assert exit_status(save_and_die_of_size, tmp_path / "run", file_bytes) == -signal.SIGXFSZ
    assert step_after_death(tmp_path / "run") == 2


def test_once_another_start_has_taken_over_no_checkpoint_counts(tmp_path):
    taken_over = RunFailed("another start of this run has taken over")

    def require() -> None:
        raise taken_over

    with (
        pytest.raises(RunFailed, match="taken over"),
        CheckpointWriter(tmp_path, ALONE, keep=1, require=require) as writer,
    ):
        save(writer, 1)
    assert not marker(tmp_path, 1).exists()
