"""The loader: every sample once, order by seed, bit-exact resume, right labels and pixels."""

from __future__ import annotations

import io
import resource
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_sets import make_source

from fourminutes.data.chunks import MAX_CHUNKS, SPARE_FILES, ShardFiles, allow_open_chunks, chunk_size
from fourminutes.data.index import build_index
from fourminutes.data.loader import (
    Batch,
    Loader,
    LoaderState,
    LoaderStateMismatch,
    _seeds,
    training_loader,
    validation_loader,
)
from fourminutes.data.manifest import INDEX_NAME, make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.errors import UserError
from fourminutes.plan import LoaderPlan, ShardRecipe, Split
from fourminutes.record import Manifest, ShardEntry

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
SAMPLES = 101  # prime: divisible by no world size and no batch
SETTINGS = LoaderPlan(threads=1, chunk_images=5, shuffle_window_images=16)


def sharded(source: Path, out: Path, *, train: int, val: int) -> Manifest:
    """The data set of `source` in `out`, in so many shards."""
    build_index(source, out / INDEX_NAME)
    for split, of in (("train", train), ("val", val)):
        for shard in range(of):
            make_shard(out / INDEX_NAME, split=split, shard=shard, of=of, out=out, recipe=ShardRecipe())
    return make_manifest(out, out=out / "manifest.json", expect=None)


def small_set(folder: Path, *, samples: int = SAMPLES, of: int = 4) -> Maker:
    """A set with one image a class in each split, so that a label tells which sample it is."""
    source = make_source(folder / "source", classes=samples, train=1, val=1)
    return Maker(folder, sharded(source, folder, train=of, val=of))


class Maker:
    """Makes loaders of the module's shards, all alike but for what a test names."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def train(self, *, settings: LoaderPlan = SETTINGS, **changes: object) -> Loader:
        form = {"image_px": 16, "batch": 8, "rank": 0, "world_size": 1, "device_id": None, "seed": 5} | changes
        return training_loader(self.folder, self.manifest, settings, **form)

    def val(self, **changes: object) -> Loader:
        form = {"image_px": 16, "batch": 8, "rank": 0, "world_size": 1, "device_id": None} | changes
        return validation_loader(self.folder, self.manifest, SETTINGS, **form)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return small_set(tmp_path_factory.mktemp("shards"))


def stored(make: Maker, split: Split) -> list[tuple[int, bytes]]:
    """Label and image of every sample, in the shards' order, read without DALI."""
    pairs = []
    for entry in make.manifest.splits[split].shards:
        with tarfile.open(make.folder / f"{entry.name}.tar") as tar:
            contents = [tar.extractfile(member).read() for member in tar]
        pairs += [(int(label), image) for image, label in zip(contents[::2], contents[1::2], strict=True)]
    return pairs


def labels_of(batches: Iterator[Batch] | list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.images, other.images)


# --- every sample once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [16, 4096])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_of_all_ranks_has_every_sample_once_in_an_order_of_its_own(make, world_size, window):
    settings = SETTINGS.model_copy(update={"shuffle_window_images": window})
    ranks = [make.train(rank=rank, world_size=world_size, settings=settings) for rank in range(world_size)]
    orders = []
    for _ in range(3):
        of_ranks = [list(loader.epoch()) for loader in ranks]
        orders.append([label for batches in of_ranks for label in labels_of(batches)])
        assert sorted(orders[-1]) == list(range(SAMPLES))
        for batches in of_ranks:
            full = SAMPLES // world_size // 8
            assert [len(batch.labels) for batch in batches[:full]] == [8] * full
            assert len(batches) <= ranks[0].batches_per_epoch
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert ranks[0].samples_per_epoch == SAMPLES


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_validation_has_every_sample_once_and_the_same_each_epoch(make, world_size):
    ranks = [make.val(rank=rank, world_size=world_size) for rank in range(world_size)]
    first, second = ([label for loader in ranks for label in labels_of(loader.epoch())] for _ in range(2))
    assert first == [label for label, _ in stored(make, "val")]
    assert sorted(first) == list(range(SAMPLES))
    assert first == second


def test_an_empty_last_batch_is_not_given(tmp_path):
    make = small_set(tmp_path, samples=10, of=2)
    ranks = [list(make.val(rank=rank, world_size=3, batch=3).epoch()) for rank in range(3)]
    assert sorted([len(batch.labels) for batch in batches] for batches in ranks) == [[3], [3], [3, 1]]


def test_neighbours_in_a_shard_are_seldom_neighbours_in_an_epoch(make):
    place = {label: number for number, (label, _) in enumerate(stored(make, "train"))}
    for _ in range(2):
        order = [place[label] for label in labels_of(make.train().epoch())]
        assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < SAMPLES / 5


def test_the_seed_decides_order_and_pixels(make):
    first, again, other = (list(make.train(seed=seed).epoch()) for seed in (5, 5, 6))
    assert_same(first, again)
    assert labels_of(first) != labels_of(other)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_later_first_epoch_has_every_sample_once_in_an_order_of_its_own(make, world_size):
    orders = []
    for first_epoch in range(4):
        ranks = [make.train(rank=rank, world_size=world_size, first_epoch=first_epoch) for rank in range(world_size)]
        for _ in range(2):
            orders.append([label for loader in ranks for label in labels_of(loader.epoch())])
            assert sorted(orders[-1]) == list(range(SAMPLES))
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_seed_decides_a_later_first_epoch_too(make):
    first, again, other = (list(make.train(first_epoch=2, seed=seed).epoch()) for seed in (5, 5, 6))
    assert_same(first, again)
    assert labels_of(first) != labels_of(other)


def test_the_first_epochs_seeds_are_those_from_before_there_were_later_ones():
    assert _seeds(5, 0, rank=3) == (16_823_399, 278_233_753)


def test_every_training_batch_is_augmented_anew(make):
    loader = make.train()
    by_label = [
        {int(label): image for batch in loader.epoch() for image, label in zip(*batch, strict=True)} for _ in range(2)
    ]
    changed = [not torch.equal(by_label[0][label], by_label[1][label]) for label in range(SAMPLES)]
    assert sum(changed) > SAMPLES * 0.9


# --- form -----------------------------------------------------------------------------------------------------------


def test_batches_have_the_promised_form_and_stay_as_they_were(make):
    held, copies = [], []
    for batch in make.train().epoch():
        held.append(batch)
        copies.append(Batch(batch.images.clone(), batch.labels.clone()))
    assert_same(held, copies)
    images, labels = held[0]
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (8,)
    assert labels.dtype == torch.int64


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_epoch", [0, 3])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("taken", [0, 1, 3, -1], ids=["before any", "after one", "after three", "after the last"])
def test_a_restored_loader_goes_on_bit_for_bit(make, rank, world_size, taken, first_epoch):
    loader = make.train(rank=rank, world_size=world_size, first_epoch=first_epoch)
    list(loader.epoch())
    epoch = loader.epoch()
    count = taken if taken >= 0 else SAMPLES // world_size // 8 + 1
    for _ in range(count):
        next(epoch)
    state = loader.state()
    expected = [list(epoch), list(loader.epoch()), list(loader.epoch())]
    saved = _through_a_file(state)
    assert saved.first_epoch == first_epoch
    restored = make.train(rank=rank, world_size=world_size, first_epoch=saved.first_epoch, state=saved)
    for batches in expected:
        assert_same(list(restored.epoch()), batches)


def _through_a_file(state: LoaderState) -> LoaderState:
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    return LoaderState.from_dict(torch.load(file, weights_only=True))


def test_taking_the_state_changes_nothing(make):
    loader, undisturbed = make.train(), make.train()
    batches = []
    for batch in loader.epoch():
        loader.state()
        batches.append(batch)
    assert_same(batches, list(undisturbed.epoch()))


def test_an_abandoned_epoch_goes_on_with_the_next_call(make):
    loader = make.train()
    next(loader.epoch())
    assert len(labels_of(loader.epoch())) == SAMPLES - 8


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"world_size": 2}, "world size"),
        ({"world_size": 2, "rank": 1}, "rank"),
        ({"batch": 4}, "batch"),
        ({"seed": 6}, "seed"),
        ({"first_epoch": 1}, "first_epoch"),
        ({"image_px": 24}, "image_px"),
        ({"settings": SETTINGS.model_copy(update={"chunk_images": 6})}, "chunk_images"),
        ({"settings": SETTINGS.model_copy(update={"shuffle_window_images": 17})}, "shuffle_window_images"),
    ],
)
def test_a_state_saved_otherwise_is_refused(make, change, name):
    state = make.train().state()
    with pytest.raises(LoaderStateMismatch, match=f"saved with {name} = "):
        make.train(state=state, **change)


def test_a_state_from_before_there_were_later_first_epochs_is_one_of_epoch_0(make):
    loader = make.train()
    next(loader.epoch())
    state = loader.state()
    older = LoaderState(
        {name: value for name, value in state.identity.items() if name != "first_epoch"}, state.pipeline
    )
    assert older.first_epoch == 0
    assert_same(list(make.train(state=older).epoch()), list(loader.epoch()))
    with pytest.raises(LoaderStateMismatch, match="saved with first_epoch = 0, but now it is 2"):
        make.train(first_epoch=2, state=older)


def test_a_state_of_other_shards_is_refused(make, tmp_path):
    other = small_set(tmp_path, of=5)
    with pytest.raises(LoaderStateMismatch, match="shards"):
        other.train(state=make.train().state())


# --- labels and pixels ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples_set(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """The real photographs of shared/data/samples, sharded."""
    out = tmp_path_factory.mktemp("samples")
    return Maker(out, sharded(shared_data / "samples", out, train=2, val=2))


def evaluated(image: Image.Image, image_px: int) -> np.ndarray:
    """What torchvision's Resize and CenterCrop make of an image, in Pillow: (px, px, 3) grey levels."""
    short = round(image_px * 256 / 224)
    width, height = (side * short // min(image.size) for side in image.size)
    left, top = round((width - image_px) / 2), round((height - image_px) / 2)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + image_px, top + image_px)), np.float64)


@pytest.mark.parametrize("image_px", [224, 65])
def test_validation_pixels_are_pillows(samples_set, image_px):
    batches = list(samples_set.val(image_px=image_px).epoch())
    expected = stored(samples_set, "val")
    assert labels_of(batches) == [label for label, _ in expected]
    images = [image for batch in batches for image in batch.images]
    differences = []
    for image, (_, data) in zip(images, expected, strict=True):
        levels = (image.permute(1, 2, 0).double().numpy() * STD + MEAN) * 255
        differences.append(np.abs(levels - evaluated(Image.open(io.BytesIO(data)), image_px)).mean())
    assert np.mean(differences) <= 0.5
    assert max(differences) <= 1


def test_training_labels_belong_to_their_images(samples_set):
    settings = SETTINGS.model_copy(update={"min_area_percent": 100, "flip": False})
    loader = samples_set.train(image_px=32, settings=settings)
    means = {label: [] for label in range(len(samples_set.manifest.classes))}
    for label, data in stored(samples_set, "train"):
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)), np.float64) / 255
        means[label].append((pixels - MEAN) / STD)
    for image, label in ((i, n) for batch in loader.epoch() for i, n in zip(*batch, strict=True)):
        pixels = image.permute(1, 2, 0).numpy()
        distances = {n: min(np.abs(other - pixels).mean() for other in of_label) for n, of_label in means.items()}
        assert min(distances, key=distances.get) == int(label)


# --- what a user can get wrong --------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Maker:
    """A set that a test may break."""
    return small_set(tmp_path, samples=12, of=2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_index_is_named_with_the_way_out(own, split):
    (own.folder / f"{split}-00001-of-00002.idx").unlink()
    with pytest.raises(UserError, match=rf"{split}-00001-of-00002.idx: .*missing.* verify .* --rebuild-index"):
        own.train() if split == "train" else own.val()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_named(own, split):
    (own.folder / f"{split}-00000-of-00002.tar").unlink()
    with pytest.raises(UserError, match=f"{split}-00000-of-00002.tar: the shard is missing"):
        own.train() if split == "train" else own.val()


def test_a_shortened_shard_is_named(own):
    tar = own.folder / "train-00000-of-00002.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-00000-of-00002.tar: .*size.*verify"):
        own.train()


@pytest.mark.parametrize("content", ["", "nonsense", "v1.2 5\n", "v1.2 6\njpg 0 1 a.jpg cls 2 4 a.cls\n"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_wrong_index_is_named(own, content, split):
    (own.folder / f"{split}-00000-of-00002.idx").write_text(content)
    with pytest.raises(UserError, match=f"{split}-00000-of-00002.idx: is no DALI index of 6 samples"):
        own.train() if split == "train" else own.val()


def test_more_processes_than_samples_are_refused(own):
    with pytest.raises(UserError, match="13 processes"):
        own.train(world_size=13)


def test_chunks_never_get_too_many():
    def shards(count: int, samples: int) -> list[ShardFiles]:
        entry = ShardEntry(name="a", samples=samples, tar_bytes=1, sha256="", index_sha256="")
        return [ShardFiles(entry, Path("a.tar"), Path("a.idx"))] * count

    assert chunk_size(64, shards(1024, 1252)) == 64
    raised = chunk_size(1, shards(1024, 1252))
    assert 1024 * -(-1252 // raised) <= MAX_CHUNKS
    with pytest.raises(UserError, match="shards"):
        chunk_size(64, shards(MAX_CHUNKS, 1))


def test_shards_that_are_not_mapped_give_the_same_batches(make, monkeypatch):
    mapped = [list(make.train().epoch()), list(make.val().epoch())]
    monkeypatch.setattr("fourminutes.data.loader.maps_safely", lambda path: False)  # as on Lustre
    for batches, others in zip(mapped, [make.train().epoch(), make.val().epoch()], strict=True):
        assert_same(batches, list(others))


def test_as_many_files_may_be_open_as_there_are_chunks():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        allow_open_chunks(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
        allow_open_chunks(512)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512 + SPARE_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_chunks_than_files_may_be_open_are_refused_with_the_factor_that_helps():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(UserError, match=r"loader\.chunk_images: .* raise chunk_images by a factor of 3"):
        allow_open_chunks(2 * hard)


def test_a_damaged_picture_ends_in_a_line_that_says_how_to_find_it(tmp_path: Path) -> None:
    """Of the same length, so that its index still holds."""
    made = small_set(tmp_path, samples=12, of=1)
    (entry,) = made.manifest.splits["train"].shards
    tar = tmp_path / f"{entry.name}.tar"
    with tarfile.open(tar) as members:
        picture = next(member for member in members if member.name.endswith(".jpg"))
    with tar.open("r+b") as file:
        file.seek(picture.offset_data)
        file.write(bytes(picture.size))
    with pytest.raises(UserError, match=f"`fourminutes data verify {tmp_path}` says what is damaged"):
        list(made.train().epoch())
