"""Batches from the shards, by DALI: read, decoded, augmented and normalised ahead of use, on the CPU or the GPU.

What is guaranteed, over the ranks of one world size that use the same manifest, settings and seed:

- **Exactly once**: an epoch has every sample of the split once; none is missing, none is repeated, also where the
  count divides by neither the batch nor the world size.
- **Order by seed**: training has another order each epoch. Shards are read in chunks of `chunk_images`; the order of
  the chunks is shuffled each epoch, and samples are drawn from a window of `shuffle_window_images` a rank. The same
  seed gives the same order, crops and flips again. Validation keeps the shards' order.
- **Resumable bit for bit**: a loader made with a saved `LoaderState` goes on with the batches that were next, to the
  last pixel, in this epoch and in later ones. A state of another world size, rank, batch, seed, data set, DALI version
  or anything else that decides the order is refused: DALI itself would take it and go wrong silently.
- **Without a state**, such as on another world size, a loader may start at a later epoch (`first_epoch`), whose order,
  crops and flips are not those of an epoch that was trained on before.

On Lustre shards are read without mapping them into memory (`fourminutes.filesystems.maps_safely`): the batches are the
same, a process then holds a file open for every chunk, and a window takes about five times the memory.

No bit-identity is promised between the CPU and the GPU, whose decoders and filters round differently.

DALI is imported when a loader is made: whoever trains on other input, as the benchmarks do, needs none.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fourminutes.data.chunks import ShardFiles, allow_open_chunks, chunk_size, find_shards, write_chunks
from fourminutes.errors import UserError
from fourminutes.filesystems import maps_safely
from fourminutes.plan import LoaderPlan
from fourminutes.record import Manifest

Identity = Mapping[str, str | int | float | bool]
_BEFORE: Identity = {"first_epoch": 0}
"""Values of names that older states lack, for want of a choice."""


class LoaderStateMismatch(UserError):
    """A saved state belongs to another order of samples than the loader's."""


class Batch(NamedTuple):
    """One rank's batch; both tensors are the caller's to keep."""

    images: torch.Tensor
    """(n, 3, px, px) float32, channels_last, less ImageNet's mean and divided by its standard deviation."""
    labels: torch.Tensor
    """(n,) int64, on the same device."""


@dataclass(frozen=True)
class LoaderState:
    """Where a rank's loader stands between two batches.

    Attributes:
        identity: everything that decides the order of samples, by name.
        pipeline: DALI's checkpoint, about 500 bytes.
    """

    identity: Identity
    pipeline: bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, texts, numbers and bytes, which `torch.load(weights_only=True)` accepts."""
        return {"identity": dict(self.identity), "pipeline": self.pipeline}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LoaderState:
        """The state that `to_dict` gave."""
        return cls(dict(saved["identity"]), saved["pipeline"])

    @property
    def first_epoch(self) -> int:
        """The `first_epoch` of the loader that was saved."""
        return int(self._complete["first_epoch"])

    def check(self, identity: Identity) -> None:
        """Raise `LoaderStateMismatch`, naming the first difference, unless `identity` is this state's."""
        for name in sorted({*self._complete, *identity}):
            saved, now = self._complete.get(name), identity.get(name)
            if saved != now:
                raise LoaderStateMismatch(
                    f"loader state: saved with {name} = {saved}, but now it is {now}; "
                    "go on with the saved value, or start the epoch again without the state"
                )

    @property
    def _complete(self) -> Identity:
        return {**_BEFORE, **self.identity}


class Loader:
    """The batches of one rank, epoch after epoch; made by `training_loader` and `validation_loader`.

    Attributes:
        samples_per_epoch: samples of the split, over all ranks.
        batches_per_epoch: the most batches that any rank gets in an epoch, the last of which may be short. The ranks'
            shares differ by up to one sample, so some ranks may get one batch less; what every rank gets in every
            epoch are (samples_per_epoch // world size) // batch full ones.
    """

    def __init__(self, pipeline: Any, *, folder: Path, samples: int, identity: Identity) -> None:
        """Start on a built `pipeline`, whose checkpoint may be restored; reading begins with the first batch."""
        from nvidia.dali.plugin.base_iterator import LastBatchPolicy
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        from fourminutes.data.pipeline import READER

        self._folder = folder
        self._identity = identity
        self._batches = DALIGenericIterator(
            pipeline,
            ["images", "labels"],
            reader_name=READER,
            last_batch_policy=LastBatchPolicy.PARTIAL,
            auto_reset=True,
            prepare_first_batch=False,
        )
        world_size, batch = int(identity["world size"]), int(identity["batch"])
        self.samples_per_epoch = samples
        self.batches_per_epoch = -(-samples // (world_size * batch))

    def epoch(self) -> Iterator[Batch]:
        """The rest of the current epoch; the next call gives the next epoch.

        An iterator that is dropped before its end leaves the rest to the next call.

        Raises:
            UserError: an image cannot be decoded or a shard cannot be read; the loader is of no further use.
        """
        try:
            for (outputs,) in self._batches:
                if len(outputs["labels"]):
                    yield Batch(outputs["images"].permute(0, 3, 1, 2), outputs["labels"])
        except RuntimeError as error:
            raise UserError(
                f"{self._folder}: a picture cannot be read or decoded; `fourminutes data verify {self._folder}` says "
                "what is damaged; remove that shard and make it again"
            ) from error

    def state(self) -> LoaderState:
        """Where the loader stands; to be called between two batches."""
        return LoaderState(self._identity, self._batches.checkpoints()[0])


def training_loader(  # noqa: PLR0913
    folder: Path,
    manifest: Manifest,
    settings: LoaderPlan,
    *,
    image_px: int,
    batch: int,
    rank: int,
    world_size: int,
    device_id: int | None,
    seed: int,
    first_epoch: int = 0,
    state: LoaderState | None = None,
) -> Loader:
    """The training batches of `rank`: random crops resized to (`image_px`, `image_px`), mirrored at random.

    Args:
        folder: where the shards and their indices lie.
        manifest: names them.
        settings: threads, depth of prefetching, window and chunks of the shuffle, augmentation.
        image_px: side of the square images, in pixels.
        batch: images a batch of this rank.
        rank: number of this process.
        world_size: number of processes.
        device_id: GPU that decodes and augments; None does both on the CPU.
        seed: of order and augmentation, the same on all ranks; these augment differently all the same.
        first_epoch: of the run, from 0, that this loader starts with. Each has an order of its own, so that a run which
            has to go on without a state does not see its first epochs again; with a state, the one that the state
            was saved with (`LoaderState.first_epoch`).
        state: where to go on; None starts an epoch.

    Raises:
        UserError: a shard or its index is missing or is not the manifest's, there are more processes than samples, or
            more chunks on Lustre than a process may hold files open.
        LoaderStateMismatch: `state` was saved under other circumstances.
    """
    from fourminutes.data.pipeline import Reading, image_pipeline

    shards = find_shards(folder, manifest, "train", world_size)
    chunk_images = chunk_size(settings.chunk_images, shards)
    identity = {
        **_identity(shards, image_px=image_px, batch=batch, rank=rank, world_size=world_size, device_id=device_id),
        "seed": seed,
        "first_epoch": first_epoch,
        "chunk_images": chunk_images,
        "shuffle_window_images": settings.shuffle_window_images,
        "min_area_percent": settings.min_area_percent,
        "flip": settings.flip,
    }
    if state is not None:
        state.check(identity)
    order_seed, own_seed = _seeds(seed, first_epoch, rank)
    with tempfile.TemporaryDirectory(prefix="fourminutes-chunks-") as scratch:
        chunks = list(write_chunks(shards, chunk_images, Path(scratch)))
        if not _mapped(shards):
            allow_open_chunks(len(chunks))
        np.random.default_rng(order_seed).shuffle(chunks)  # DALI shuffles after each epoch, not before the first
        pipeline = image_pipeline(
            Reading(chunks, rank, world_size, order_seed, settings.shuffle_window_images, _mapped(shards)),
            settings,
            image_px=image_px,
            batch=batch,
            device_id=device_id,
            augment=True,
            seed=own_seed,
            checkpoint=state.pipeline if state else None,
        )  # has read the chunks' indices, which may go now
    return Loader(pipeline, folder=folder, samples=_samples(shards), identity=identity)


def validation_loader(
    folder: Path,
    manifest: Manifest,
    settings: LoaderPlan,
    *,
    image_px: int,
    batch: int,
    rank: int,
    world_size: int,
    device_id: int | None,
) -> Loader:
    """The validation batches of `rank`, the same each epoch: centre crops, in the shards' order.

    The shorter side is resized to image_px x 256/224 and the centre cropped, as Pillow and torchvision do it, to
    within half a grey level on average. Arguments and errors are those of `training_loader`. A rank may get one
    batch less than another.
    """
    from fourminutes.data.pipeline import Reading, image_pipeline

    shards = find_shards(folder, manifest, "val", world_size)
    pipeline = image_pipeline(
        Reading([(shard.tar, shard.index) for shard in shards], rank, world_size, mapped=_mapped(shards)),
        settings,
        image_px=image_px,
        batch=batch,
        device_id=device_id,
        augment=False,
        seed=0,
    )
    identity = _identity(shards, image_px=image_px, batch=batch, rank=rank, world_size=world_size, device_id=device_id)
    return Loader(pipeline, folder=folder, samples=_samples(shards), identity=identity)


def _identity(
    shards: list[ShardFiles], *, image_px: int, batch: int, rank: int, world_size: int, device_id: int | None
) -> dict[str, str | int | float | bool]:
    """What decides a rank's samples in both splits, named as a user would."""
    import nvidia.dali

    names = json.dumps([(shard.entry.name, shard.entry.samples, shard.entry.sha256) for shard in shards])
    return {
        "shards": hashlib.sha256(names.encode()).hexdigest(),
        "DALI": nvidia.dali.__version__,
        "device": "CPU" if device_id is None else "GPU",
        "world size": world_size,
        "rank": rank,
        "batch": batch,
        "image_px": image_px,
    }


def _mapped(shards: list[ShardFiles]) -> bool:
    """Whether DALI may map the shards into memory; they all lie in one folder."""
    return maps_safely(shards[0].tar)


def _samples(shards: list[ShardFiles]) -> int:
    return sum(shard.entry.samples for shard in shards)


def _seeds(seed: int, first_epoch: int, rank: int) -> tuple[int, int]:
    """Of the order, the same on all ranks, and of the rank's own random numbers."""
    later = (first_epoch,) if first_epoch else ()
    order, own = (
        int(np.random.SeedSequence(words, spawn_key=later).generate_state(1)[0]) for words in ([seed], [seed, rank + 1])
    )
    return order, own
