"""Checkpoints on disk: one folder a step, valid only when every file is there and unharmed.

::

    step-00000400/shared.pt         weights, optimizer, what was recorded so far
    step-00000400/rank-00001.pt     what only this rank has: loader position, random states, batch norm's statistics
    step-00000400/complete.json     a `Marker`, with the SHA-256 of every file above; written last
    best.pt                         weights of the best epoch so far
    final.pt                        weights of the finished run
    record.json                     its record
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self, TypeVar, cast

import torch
from pydantic import Field, model_validator

from fourminutes.errors import UserError
from fourminutes.files import written_aside
from fourminutes.record.base import Record
from fourminutes.train.ranks import Ranks

# Tensors, numbers, texts, bytes and None, in dicts, lists and tuples of any depth.
State = dict[str, Any]
Value = TypeVar("Value")
MARKER = "complete.json"
SHARED = "shared.pt"
BEST = "best.pt"
FINAL = "final.pt"


class Marker(Record):
    """What `complete.json` says of the files beside it."""

    format: Literal[2] = Field(description="version of this form")
    step: int = Field(ge=0, description="global batches trained on by then, as in the folder's name")
    world_size: int = Field(ge=1, description="number of processes that wrote it")
    at_epoch_end: bool = Field(description="whether an epoch was over, when all ranks hold what the shared part says")
    sha256: dict[str, str] = Field(description="SHA-256 of every file, by name")

    @model_validator(mode="after")
    def _names_every_file(self) -> Self:
        if self.sha256.keys() != {SHARED, *map(rank_file, range(self.world_size))}:
            raise ValueError(f"sha256: must name the files of {self.world_size} processes")
        return self


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read.

    Attributes:
        shared: the part for all ranks.
        own: this rank's own part; None where another number of processes wrote the checkpoint.
        world_size: number of processes that wrote it.
        at_epoch_end: whether an epoch was over.
        step: global batches trained on by then, whether or not their steps were skipped.
    """

    shared: State
    own: State | None
    world_size: int
    at_epoch_end: bool
    step: int


def load_newest(folder: Path, ranks: Ranks, notes: list[str] | None = None) -> Saved | None:
    """The newest checkpoint that can be gone on from and is whole on every rank; None where there is none.

    From one that another number of processes wrote, the run can go on only at an epoch's end, without any rank's own
    part. What is passed over, damaged or not fit for this, is named on stderr and in `notes`, and left as it is. To be
    called by all ranks.

    Raises:
        UserError: a rank cannot read one, which may be whole; raised on all ranks.
    """
    unfit: Marker | None = None
    notes = [] if notes is None else notes
    for home in ranks.first(complete_checkpoints(folder)):
        marker = ranks.agreed(_reading(home, partial(read_marker, home)) if ranks.is_first else None)[0]
        if marker is not None and marker.world_size != ranks.world_size and not marker.at_epoch_end:
            unfit = unfit or marker
            continue
        saved = _load(home, marker, ranks) if marker is not None else None
        if saved is not None:
            _say_who_wrote(folder, saved, unfit, ranks, notes)
            return saved
        _say(ranks, notes, f"{home}: is damaged; looking for the checkpoint before it")
    if unfit is not None:
        what = "no usable end of an epoch is saved, so the run starts anew"
        _say(ranks, notes, f"{_written_by(folder, unfit, ranks)}: {what}")
    return None


def read_marker(home: Path) -> Marker | None:
    """What the marker of a checkpoint says; None where it is missing, damaged or of another form.

    Raises:
        OSError: it is there, but cannot be read.
    """
    try:
        marker = Marker.model_validate_json((home / MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return marker if home_of(home.parent, marker.step) == home else None


def write_state(path: Path, state: State) -> str:
    """Write `state` to `path`, whole or not at all; returns the file's SHA-256.

    Raises:
        UserError: the folder cannot be written, or its disk is full.
        OSError: whatever else the operating system has against it.
    """
    with written_aside(path) as file:
        hashing = _Hashing(file)
        torch.save(state, cast("IO[bytes]", hashing))
        return hashing.hexdigest()


def save_weights(path: Path, weights: State) -> None:
    """Write weights alone, as a state dict."""
    write_state(path, weights)


def drop_older(folder: Path, step: int, keep: int) -> None:
    """Remove what is older than the newest `keep` checkpoints, but not the newest of an epoch's end.

    Those after `step` don't count: they are of a run that came further, and that could not be gone on from. Nothing
    is removed while a marker cannot be read.
    """
    try:
        markers = [read_marker(home) for home in complete_checkpoints(folder)]
    except OSError:
        return
    whole = [marker for marker in markers if marker is not None and marker.step <= step]
    oldest = min((marker.step for marker in whole[:keep]), default=0)
    at_end = [home_of(folder, marker.step) for marker in whole if marker.at_epoch_end][:1]
    for home in folder.glob("step-*"):
        if home < home_of(folder, oldest) and home not in at_end:
            _remove(home)


def drop_all(folder: Path) -> None:
    """Remove every checkpoint, but not the best and the final weights."""
    for home in folder.glob("step-*"):
        _remove(home)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders of all checkpoints that have a marker, newest first."""
    return sorted((marker.parent for marker in folder.glob(f"step-*/{MARKER}")), reverse=True)


def home_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return folder / f"step-{step:08d}"


def rank_file(rank: int) -> str:
    """The name of a rank's own part."""
    return f"rank-{rank:05d}.pt"


class _Hashing:
    """What `torch.save` takes for a file: passes the bytes on piece by piece, and hashes them.

    The whole is never copied, and other threads go on, since both hashing and writing release Python's lock. A
    failure is kept for later: torch would not pass it on, but complain that its file is too short.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._failure: OSError | None = None

    def write(self, piece: memoryview) -> int:
        if self._failure is None:
            self._sha256.update(piece)
            try:
                self._file.write(piece)
            except OSError as error:
                self._failure = error
        return len(piece)

    def flush(self) -> None:
        """Left to `written_aside`."""

    def hexdigest(self) -> str:
        """The SHA-256 of all that was written; raises what went wrong with writing."""
        if self._failure is not None:
            raise self._failure
        return self._sha256.hexdigest()


def _load(home: Path, marker: Marker, ranks: Ranks) -> Saved | None:
    """The checkpoint as this rank needs it; None where any rank finds a file missing or not as it was written."""
    own = rank_file(ranks.rank)
    names = [SHARED, own] if marker.world_size == ranks.world_size else [SHARED]
    states = _reading(home, lambda: _read_states(home, {name: marker.sha256[name] for name in names}))
    is_whole = ranks.agreed(states if isinstance(states, UserError) else states is not None)
    if not isinstance(states, dict) or not all(is_whole):
        return None
    return Saved(states[SHARED], states.get(own), marker.world_size, marker.at_epoch_end, marker.step)


def _read_states(home: Path, sha256: dict[str, str]) -> dict[str, State] | None:
    try:
        return {name: _read_verified(home / name, digest) for name, digest in sha256.items()}
    except (FileNotFoundError, ValueError, pickle.UnpicklingError):
        return None


def _read_verified(path: Path, sha256: str) -> State:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{path}: is damaged")
        file.seek(0)
        state: State = torch.load(file, map_location="cpu", weights_only=True)
        return state


def _reading(home: Path, read: Callable[[], Value]) -> Value | UserError:
    """What `read` returns; a failure is returned too, so that all ranks can hear of it."""
    try:
        return read()
    except OSError as error:
        way_out = "run the same command again, or remove that folder to go on from the checkpoint before"
        return UserError(f"{home}: cannot be read: {error.strerror}; {way_out}")


def _remove(home: Path) -> None:
    """Remove a checkpoint, its marker first, so that what is left never counts; one that stays does no harm."""
    with suppress(OSError):
        (home / MARKER).unlink(missing_ok=True)
        shutil.rmtree(home)


def _say_who_wrote(folder: Path, saved: Saved, unfit: Marker | None, ranks: Ranks, notes: list[str]) -> None:
    """Tell of another number of processes, where that changes from where the run goes on or how."""
    if unfit is not None:
        what = "the interrupted epoch starts again" if saved.at_epoch_end else "going on"
        _say(ranks, notes, f"{_written_by(folder, unfit, ranks)}: {what} from step {saved.step}")
    elif saved.own is None:
        _say(ranks, notes, f"{_written_by(folder, saved, ranks)}: going on from there, the end of an epoch")


def _written_by(folder: Path, checkpoint: Marker | Saved, ranks: Ranks) -> str:
    home = home_of(folder, checkpoint.step)
    return f"{home}: written by {checkpoint.world_size} processes, now {ranks.world_size}"


def _say(ranks: Ranks, notes: list[str], line: str) -> None:
    notes.append(line)
    if ranks.is_first:
        print(f"fourminutes: {line}", file=sys.stderr)
