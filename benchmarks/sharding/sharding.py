"""How fast a shard is made beside `cp` and beside a bare decode loop, in one run, interleaved.

    python benchmarks/sharding/sharding.py [FOLDER]

FOLDER (default: a temporary one) is where some 700 MB are written; its disk is what is measured.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fourminutes.data.index import build_index, read_rows
from fourminutes.data.shard import make_shard
from fourminutes.plan import ShardRecipe

IMAGES, CLASSES, DISTINCT = 2000, 2, 100
WIDTH_PX, HEIGHT_PX = 500, 375
DECODE_OF = 2  # decoding is slow and steady: half of the images tells as much
REPEATS, COLD_REPEATS = 9, 5
SEED = 0


def main() -> None:
    """Make the source, measure, print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        make_source(folder / "source")
        index = folder / "index.parquet"
        build_index(folder / "source", index)
        archive = folder / "source" / "ILSVRC2012_img_train.tar"
        megabytes = archive.stat().st_size / 1e6
        print(f"\n{IMAGES} images of {megabytes / IMAGES * 1e3:.0f} KB, medians of {REPEATS}, interleaved\n")
        warm(folder, index, archive, megabytes)
        decode(folder, index, archive)
        memory(folder, index)
        cold(index, archive)


def make_source(folder: Path) -> None:
    """A train archive of `IMAGES` noisy JPEGs, and a validation image of each class."""
    pictures = [draw(number) for number in range(DISTINCT)]
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for number in range(CLASSES):
            wnid = f"n{number + 1:08d}"
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for image in range(IMAGES // CLASSES):
                    add(tar, f"{wnid}_{image}.JPEG", pictures[image % DISTINCT])
            add(outer, f"{wnid}.tar", inner.getvalue())
            val = folder / "val" / wnid
            val.mkdir(parents=True)
            (val / f"{number}.JPEG").write_bytes(pictures[number])


def draw(number: int) -> bytes:
    """A JPEG of about 110 KB, the mean of ImageNet's."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH_PX, HEIGHT_PX))
    noise = rng.normal(0, 22, (HEIGHT_PX, WIDTH_PX, 1))
    out = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def warm(folder: Path, index: Path, archive: Path, megabytes: float) -> None:
    """`cp` of the archive, with and without syncing it, and a shard of the same images."""
    copy, recipe = folder / "copy", ShardRecipe(seed=SEED, check="header")

    def cp() -> None:
        subprocess.run(["cp", archive, copy], check=True)

    def cp_synced() -> None:
        cp()
        with copy.open("rb") as file:
            os.fsync(file.fileno())

    def shard() -> None:
        make_shard(index, split="train", shard=0, of=1, out=folder / "set", recipe=recipe)

    def clean() -> None:
        for path in (copy, *(folder / "set").glob("train-*")):
            path.unlink(missing_ok=True)

    names = {"cp": cp, "cp, synced": cp_synced, "shard, check: header (synced, hashed)": shard}
    seconds = interleaved(names, clean, REPEATS)
    for name, taken in seconds.items():
        show(name, f"{megabytes / taken:7.0f} MB/s", seconds["cp, synced"] / taken, "cp, synced")
    show("", "", seconds["cp"] / seconds["shard, check: header (synced, hashed)"], "cp")


def decode(folder: Path, index: Path, archive: Path) -> None:
    """A bare loop of Pillow decodes, and a shard of the same images."""
    rows = np.arange(IMAGES // DECODE_OF)
    with archive.open("rb") as file:
        contents = [os.pread(file.fileno(), image.length, image.offset) for image in read_rows(index, "train", rows)]
    recipe = ShardRecipe(seed=SEED)

    def bare() -> None:
        for content in contents:
            Image.open(io.BytesIO(content)).load()

    def shard() -> None:
        make_shard(index, split="train", shard=0, of=DECODE_OF, out=folder / "set", recipe=recipe)

    seconds = interleaved({"bare decode loop": bare, "shard, check: decode": shard}, lambda: None, REPEATS)
    for name, taken in seconds.items():
        show(name, f"{len(contents) / taken:7.0f} img/s", seconds["bare decode loop"] / taken, "bare loop")


def memory(folder: Path, index: Path) -> None:
    """Peak memory of the command that makes the whole set one shard."""
    command = [
        sys.executable,
        "-m",
        "fourminutes",
        "data",
        "shard",
        index,
        "--split",
        "train",
        "--shard",
        "0",
        "--of",
        "1",
    ]
    program = subprocess.Popen([*map(str, command), "--out", str(folder / "set")], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(program.pid, 0)
    assert status == 0
    shard_mib = (folder / "set" / "train-00000-of-00001.tar").stat().st_size / 2**20
    print(f"\npeak memory {usage.ru_maxrss / 2**10:.0f} MiB for a shard of {shard_mib:.0f} MiB (check: decode)")


def cold(index: Path, archive: Path) -> None:
    """Reading a tenth of the images with nothing in the page cache: in the shuffled order, and sorted by offset."""
    rows = np.random.RandomState(SEED).permutation(IMAGES)[: IMAGES // 10]
    places = [(image.offset, image.length) for image in read_rows(index, "train", rows)]

    def read(order: list[tuple[int, int]], announce: Sequence[tuple[int, int]] = ()) -> None:
        with archive.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset, length in announce:
                os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
            for offset, length in order:
                os.pread(file.fileno(), length, offset)

    def forget() -> None:
        with archive.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    orders = {
        "cold, shuffled": lambda: read(places),
        "cold, sorted by offset": lambda: read(sorted(places)),
        "cold, announced sorted, read shuffled": lambda: read(places, announce=sorted(places)),
    }
    seconds = interleaved(orders, forget, COLD_REPEATS)
    print(f"\nnothing in the page cache, {len(places)} of {IMAGES} images, medians of {COLD_REPEATS}\n")
    for name, taken in seconds.items():
        show(name, f"{len(places) / taken:7.0f} img/s", seconds["cold, shuffled"] / taken, "shuffled")


def interleaved(
    candidates: dict[str, Callable[[], None]], between: Callable[[], None], repeats: int
) -> dict[str, float]:
    """The median time of each candidate in seconds, taken in turn so that other load falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            between()
            start_s = time.perf_counter()
            run()
            if repeat:  # the first round fills the page cache
                taken[name].append(time.perf_counter() - start_s)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(name: str, rate: str, ratio: float, base: str) -> None:
    """A line of the table."""
    print(f"{name:40}{rate:16}{ratio:6.2f} of {base}")


if __name__ == "__main__":
    main()
