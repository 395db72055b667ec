"""Index a nested tar with as many members as ILSVRC2012, each tiny; report time, rate and memory.

What is timed is `fourminutes data index` as a user runs it: one process, start of the interpreter included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io import savemat

TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000
CLASSES = 1_000
IMAGE_BYTES = 1_000  # with its header and padding a member takes 1,536 bytes
READ_ROWS = f"""
import pathlib, sys
import numpy
from fourminutes.data.index import read_rows
rows = numpy.random.default_rng(0).permutation({TRAIN_IMAGES})[: {TRAIN_IMAGES} // 1024]
assert len(read_rows(pathlib.Path(sys.argv[1]), "train", rows)) == len(rows)
"""


def main() -> None:
    """Make the archives, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where 2.1 GB may be written for the time of the measurement")
    parser.add_argument("--workers", type=int, help="as for `fourminutes data index`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        source = Path(temporary)
        make_archives(source)
        for cache in ("warm", "cold"):
            if cache == "cold":
                drop_from_cache(source)
            report(f"index, cache {cache}", measure(index_command(source, arguments.workers)))
        report("rows of one shard of 1,024", measure([sys.executable, "-c", READ_ROWS, str(source / "index.parquet")]))


def index_command(source: Path, workers: int | None) -> list[str]:
    """The command that is timed."""
    command = [
        sys.executable,
        "-m",
        "fourminutes",
        "data",
        "index",
        str(source),
        "--out",
        str(source / "index.parquet"),
    ]
    return command + (["--workers", str(workers)] if workers else [])


def report(what: str, measured: dict[str, float]) -> None:
    """Print a line of JSON."""
    if what.startswith("index"):
        measured["images_per_s"] = round((TRAIN_IMAGES + VAL_IMAGES) / measured["wall_s"])
    print(json.dumps({"what": what, **measured}), flush=True)


def make_archives(source: Path) -> None:
    """Write the three archives with as many members as the real ones; no member is an image."""
    wnids = [f"n{1_440_764 + 17 * place:08d}" for place in range(CLASSES)]
    with (source / "ILSVRC2012_img_train.tar").open("wb") as train:
        for place, wnid in enumerate(wnids):
            images = TRAIN_IMAGES // CLASSES + (place < TRAIN_IMAGES % CLASSES)
            train.write(framed(f"{wnid}.tar", packed(f"{wnid}_{number}.JPEG" for number in range(images))))
        train.write(bytes(2 * tarfile.BLOCKSIZE))
    val = packed(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, VAL_IMAGES + 1))
    (source / "ILSVRC2012_img_val.tar").write_bytes(val)
    make_devkit(source / "ILSVRC2012_devkit_t12" / "data", wnids)


def make_devkit(folder: Path, wnids: list[str]) -> None:
    """Write an extracted devkit: all classes are leaves."""
    folder.mkdir(parents=True)
    synsets = np.zeros(len(wnids), [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    synsets["ILSVRC2012_ID"] = range(1, len(wnids) + 1)
    synsets["WNID"] = wnids
    savemat(folder / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{number % len(wnids) + 1}\n" for number in range(VAL_IMAGES))
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def packed(names: Iterable[str]) -> bytes:
    """A tar of members with these names."""
    tar = io.BytesIO()
    for name in names:
        tar.write(framed(name, bytes(IMAGE_BYTES)))
    tar.write(bytes(2 * tarfile.BLOCKSIZE))
    return tar.getvalue()


def framed(name: str, content: bytes) -> bytes:
    """A member of a tar: header, content, padding."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def drop_from_cache(source: Path) -> None:
    """Let go of the archives' pages in the system's cache, as far as the system agrees."""
    for path in source.glob("*.tar"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command: list[str]) -> dict[str, float]:
    """Time and peak resident memory of a command; it is a single process, so its peak is all there is."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    start_s = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ, file_actions=quiet), 0)
    wall_s = time.perf_counter() - start_s
    if status:
        sys.exit("the command failed; it says above why")
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mib": round(usage.ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
