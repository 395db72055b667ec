"""Checkpoints: one folder a step, one file a rank and one for all, valid only when every file is there and unharmed.

::

    step-00000400/shared.pt         weights, optimizer, what was recorded so far
    step-00000400/rank-00001.pt     what only this rank has: loader position, random states, batch norm's statistics
    step-00000400/complete.json     SHA-256 of every file above; written last
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fourminutes.errors import UserError
from fourminutes.files import write_text, written_aside
from fourminutes.train.ranks import Ranks

State = dict[str, Any]
Value = TypeVar("Value")
MARKER = "complete.json"
SHARED = "shared.pt"
FINAL = "final.pt"


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read: the part for all ranks, and this rank's own."""

    shared: State
    own: State


def save(folder: Path, step: int, *, shared: State, own: State, ranks: Ranks, keep: int) -> None:
    """Write every rank's part of the checkpoint of `step`, and drop all but the newest `keep`.

    To be called by all ranks; `shared` is taken from rank 0.

    Raises:
        UserError: a rank cannot write; raised on all ranks, and the checkpoints before are untouched.
    """
    home = folder / f"step-{step:08d}"
    states = {rank_file(ranks.rank): own} | ({SHARED: shared} if ranks.is_first else {})
    written = _attempt(lambda: {name: _write(home / name, state) for name, state in states.items()})
    digests = {name: sha256 for files in _unless_failed(ranks.gather(written)) for name, sha256 in files.items()}
    marker = json.dumps(digests, indent=1) + "\n"
    marked = _attempt(lambda: write_text(home / MARKER, marker)) if ranks.is_first else None
    _unless_failed(ranks.gather(marked))
    if ranks.is_first:
        _drop_older(folder, keep)


def load_newest(folder: Path, ranks: Ranks) -> Saved | None:
    """The newest checkpoint that is whole on every rank; None where there is none.

    A damaged one is passed over with a line on stderr.

    Raises:
        UserError: a rank cannot read one, which may be whole; raised on all ranks, and nothing is changed.
    """
    for home in ranks.first(complete_checkpoints(folder)):
        saved = _read(home, ranks.rank)
        is_whole = _unless_failed(ranks.gather(saved if isinstance(saved, UserError) else saved is not None))
        if isinstance(saved, Saved) and all(is_whole):
            return saved
        if ranks.is_first:
            print(f"fourminutes: {home}: is damaged; looking for the checkpoint before it", file=sys.stderr)
            (home / MARKER).unlink(missing_ok=True)
    return None


def save_weights(folder: Path, weights: State) -> None:
    """Write the final weights alone, as a state dict."""
    _write(folder / FINAL, weights)


def drop_all(folder: Path) -> None:
    """Remove every checkpoint, but not the final weights."""
    _drop_older(folder, keep=0)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders of all complete checkpoints, newest first."""
    return sorted((marker.parent for marker in folder.glob(f"step-*/{MARKER}")), reverse=True)


def rank_file(rank: int) -> str:
    """The name of a rank's own part."""
    return f"rank-{rank:05d}.pt"


def _attempt(act: Callable[[], Value]) -> Value | UserError:
    """What `act` returns; a failure to write is returned too, so that all ranks can hear of it."""
    try:
        return act()
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{error.filename}: cannot be written: {error.strerror}; choose another folder for work")


def _unless_failed(outcomes: Sequence[Value | UserError]) -> list[Value]:
    """What came of it on all ranks; raises the first one's failure, the same on every rank."""
    values = [outcome for outcome in outcomes if not isinstance(outcome, UserError)]
    for outcome in outcomes:
        if isinstance(outcome, UserError):
            raise outcome
    return values


def _write(path: Path, state: State) -> str:
    """Write `state`; returns the file's SHA-256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with written_aside(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def _read(home: Path, rank: int) -> Saved | UserError | None:
    """This rank's view of a checkpoint; None where a file is missing or not as it was written."""
    try:
        expected = json.loads((home / MARKER).read_text())
        parts = [_read_verified(home / name, expected[name]) for name in (SHARED, rank_file(rank))]
    except (FileNotFoundError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
        return None
    except OSError as error:
        way_out = "run the same command again, or remove that folder to go on from the checkpoint before"
        return UserError(f"{home}: cannot be read: {error.strerror}; {way_out}")
    return Saved(*parts)


def _read_verified(path: Path, sha256: str) -> State:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: is damaged")
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _drop_older(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and whatever is older than those."""
    kept = complete_checkpoints(folder)[:keep]
    oldest_kept = kept[-1].name if kept else None
    for home in folder.glob("step-*"):
        if oldest_kept is None or home.name < oldest_kept:
            (home / MARKER).unlink(missing_ok=True)
            shutil.rmtree(home, ignore_errors=True)
