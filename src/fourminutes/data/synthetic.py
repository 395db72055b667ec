"""A miniature ImageNet, drawn: the three official archives with made-up classes, odd files included.

The WNIDs are made up but well-formed: ``n9`` and seven digits, larger than any offset in WordNet, so that none can
be taken for a real synset's.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

import numpy as np
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

from fourminutes.data.draw import draw, look_of
from fourminutes.files import written_aside
from fourminutes.plan.data import SPLITS, Split, SyntheticSource
from fourminutes.progress import progress

Form = Literal["plain", "progressive", "grey", "cmyk", "png", "rotated", "truncated"]
"""How a picture is stored; ImageNet has all of these, and each has tripped some reader."""

_WNIDS, _VAL_ORDER, _PICTURES = range(3)  # keep the random streams of one seed apart
_PICTURES_A_TASK = 16
_ODD_TRAIN: dict[int, Form] = {1: "cmyk", 3: "png", 5: "rotated", 7: "truncated"}
_GREY_EVERY = 50  # about 2 % of ImageNet is grey
_PROGRESSIVE_EVERY = 40
_EXIF_ORIENTATION = 0x0112
_DEVKIT = "ILSVRC2012_devkit_t12/data"
_MAT_TEXT_BYTES = 116


def synthesize(out: Path, source: SyntheticSource) -> None:
    """Draw `source` and write its three archives to the folder `out`.

    - ``ILSVRC2012_img_train.tar``: one ``<wnid>.tar`` a class, each of ``<wnid>_<number>.JPEG``
    - ``ILSVRC2012_img_val.tar``: ``ILSVRC2012_val_00000001.JPEG`` and on, classes shuffled
    - ``ILSVRC2012_devkit_t12.tar.gz``: ``meta.mat`` and the validation ground truth

    As in the real set, some pictures are grey and some are progressive JPEGs. Of the first class's training pictures
    number 1 is a CMYK JPEG, 3 a PNG named .JPEG, 5 has EXIF orientation 6, and 7 is truncated.

    Every picture has a random stream of its own, so the bytes depend on `source` (and on the versions of NumPy,
    SciPy and Pillow), not on the number of processes that draw.

    Raises:
        UserError: `out` cannot be written.
    """
    synsets = _synsets(source)
    wnids = [synset.wnid for synset in synsets if not synset.children]
    val_classes = _val_classes(source)
    train_classes = [number for number in range(source.classes) for _ in range(source.train_per_class)]
    with (
        progress(len(train_classes) + len(val_classes), "pictures", "drawing") as bar,
        _one_process_a_core() as pool,
    ):
        with written_aside(out / "ILSVRC2012_img_train.tar") as file:
            _write_train(file, wnids, _pictures(pool, source, "train", train_classes, bar), source.train_per_class)
        with written_aside(out / "ILSVRC2012_img_val.tar") as file:
            _write_val(file, _pictures(pool, source, "val", val_classes, bar))
    with written_aside(out / "ILSVRC2012_devkit_t12.tar.gz") as file:
        _write_devkit(file, synsets, val_classes)


# --- pictures -------------------------------------------------------------------------------------------------------


@contextmanager
def _one_process_a_core() -> Iterator[ProcessPoolExecutor]:
    """Processes that draw; where the writing fails, what is still to be drawn is dropped."""
    # Not forked from this process, which may hold threads, such as PyTorch's.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _pictures(
    pool: ProcessPoolExecutor, source: SyntheticSource, split: Split, classes: list[int], bar: tqdm[NoReturn]
) -> Iterator[bytes]:
    """The files of `split` in order, one for each entry of `classes`, drawn by `pool`."""
    draw_one = partial(_picture, source, split)
    for data in pool.map(draw_one, range(len(classes)), classes, chunksize=_PICTURES_A_TASK):
        bar.update()
        yield data


def _picture(source: SyntheticSource, split: Split, serial: int, number: int) -> bytes:
    """The file of the picture `serial` of `split`, which is of class `number`."""
    rng = np.random.default_rng([source.seed, _PICTURES, SPLITS.index(split), serial])
    image = draw(look_of(number), source.side_px, rng)
    return _encode(image, _form(split, serial), quality=int(rng.integers(80, 96)))


def _form(split: Split, serial: int) -> Form:
    if split == "train" and serial in _ODD_TRAIN:
        return _ODD_TRAIN[serial]
    if serial % _GREY_EVERY == 9:
        return "grey"
    return "progressive" if serial % _PROGRESSIVE_EVERY == 11 else "plain"


def _encode(image: Image.Image, form: Form, *, quality: int) -> bytes:
    """Encode an RGB image as `form`; `quality` is libjpeg's."""
    buffer = io.BytesIO()
    match form:
        case "png":
            image.save(buffer, "PNG")
        case "grey" | "cmyk":
            image.convert("L" if form == "grey" else "CMYK").save(buffer, "JPEG", quality=quality)
        case "rotated":  # as a camera held upright stores it: turned, with a note to turn it back
            exif = Image.Exif()
            exif[_EXIF_ORIENTATION] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=quality, exif=exif)
        case _:
            image.save(buffer, "JPEG", quality=quality, progressive=form == "progressive")
    data = buffer.getvalue()
    return data[: len(data) // 2] if form == "truncated" else data


def _val_classes(source: SyntheticSource) -> list[int]:
    """The class number of each validation picture, shuffled."""
    in_order = np.repeat(np.arange(source.classes), source.val_per_class)
    return [int(number) for number in np.random.default_rng([source.seed, _VAL_ORDER]).permutation(in_order)]


# --- synsets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Synset:
    """One row of meta.mat; `children` holds IDs and is empty for a leaf, that is a class."""

    wnid: str
    words: str
    gloss: str
    children: tuple[int, ...] = ()
    height: int = 0
    train_images: int = 0


def _synsets(source: SyntheticSource) -> list[_Synset]:
    """The leaves, IDs 1..N, then an internal synset for each shape, then the root."""
    looks = [look_of(number) for number in range(source.classes)]
    kinds: dict[str, list[int]] = {}
    for synset_id, look in enumerate(looks, start=1):
        kinds.setdefault(look.shape, []).append(synset_id)
    wnids = iter(_made_up_wnids(source, source.classes + len(kinds) + 1))
    leaves = [
        _Synset(next(wnids), look.words, f"made up: a {look.words}", train_images=source.train_per_class)
        for look in looks
    ]
    internal = [
        _Synset(next(wnids), shape, f"made up: any {shape}", tuple(children), height=1)
        for shape, children in kinds.items()
    ]
    shape_ids = tuple(range(len(leaves) + 1, len(leaves) + len(internal) + 1))
    return [*leaves, *internal, _Synset(next(wnids), "drawing", "made up: anything drawn here", shape_ids, height=2)]


def _made_up_wnids(source: SyntheticSource, count: int) -> list[str]:
    """WNIDs in no sorted order: as in the real set, a class's ID and its place among the sorted WNIDs differ."""
    rng = np.random.default_rng([source.seed, _WNIDS])
    offsets = rng.choice(10_000_000, size=count, replace=False)
    leaves = offsets[: source.classes]
    if (np.diff(leaves) > 0).all():  # sorted by chance
        offsets[: source.classes] = leaves[::-1].copy()
    return [f"n9{offset:07d}" for offset in offsets]


def _meta_mat(synsets: list[_Synset]) -> bytes:
    """The struct array `synsets`, (N, 1), with the fields of the real meta.mat."""
    rows = [
        {
            "ILSVRC2012_ID": float(synset_id),
            "WNID": synset.wnid,
            "words": synset.words,
            "gloss": synset.gloss,
            "num_children": float(len(synset.children)),
            "children": np.array([synset.children], np.float64) if synset.children else np.zeros((0, 0)),
            "wordnet_height": float(synset.height),
            "num_train_images": float(synset.train_images),
        }
        for synset_id, synset in enumerate(synsets, start=1)
    ]
    table = np.empty((len(rows), 1), [(field, object) for field in rows[0]])
    for place, row in enumerate(rows):
        table[place, 0] = tuple(row.values())
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table}, do_compression=True)  # type: ignore[arg-type]  # the stubs know only paths
    # SciPy writes the time of day into the header's free text.
    return b"MATLAB 5.0 MAT-file, drawn by fourminutes".ljust(_MAT_TEXT_BYTES) + buffer.getvalue()[_MAT_TEXT_BYTES:]


# --- archives -------------------------------------------------------------------------------------------------------


def _write_train(file: BinaryIO, wnids: list[str], pictures: Iterator[bytes], per_class: int) -> None:
    """A tar of one tar a class; `pictures` come class by class."""

    def class_tars() -> Iterator[tuple[str, bytes]]:
        for wnid in wnids:
            buffer = io.BytesIO()
            names = (f"{wnid}_{number}.JPEG" for number in range(per_class))
            _write_tar(buffer, zip(names, islice(pictures, per_class), strict=True))
            yield f"{wnid}.tar", buffer.getvalue()

    _write_tar(file, class_tars())


def _write_val(file: BinaryIO, pictures: Iterator[bytes]) -> None:
    _write_tar(file, ((f"ILSVRC2012_val_{number:08d}.JPEG", data) for number, data in enumerate(pictures, start=1)))


def _write_devkit(file: BinaryIO, synsets: list[_Synset], val_classes: list[int]) -> None:
    truth = "".join(f"{number + 1}\n" for number in val_classes).encode()
    members = (
        (f"{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt", truth),
        (f"{_DEVKIT}/meta.mat", _meta_mat(synsets)),
    )
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as compressed:
        _write_tar(compressed, members)


def _write_tar(file: BinaryIO | gzip.GzipFile, members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs as plain files, without times and owners."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
