"""The development kit of ILSVRC2012: which class each validation picture is of."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourminutes.errors import UserError

_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def read_val_wnids(devkit: Path) -> list[str]:
    """Read the WNID of every validation picture.

    Args:
        devkit: ``ILSVRC2012_devkit_t12.tar.gz``, or the folder extracted from it.

    Returns:
        The WNID of ``ILSVRC2012_val_<n>.JPEG`` at place n - 1.

    Raises:
        UserError: a file of the devkit is missing or unreadable, or the ground truth names a class that is no leaf of
            the class hierarchy.
    """
    wnid_of = _leaf_wnids(_read(devkit, _META), f"{devkit}: {_META}")
    ground_truth = _read(devkit, _GROUND_TRUTH).decode(errors="replace").split()
    wnids = []
    for line, text in enumerate(ground_truth, start=1):
        wnid = wnid_of.get(int(text)) if text.isdecimal() else None
        if wnid is None:
            raise UserError(
                f"{devkit}: {_GROUND_TRUTH}, line {line}: {text!r} is no ILSVRC2012_ID of a leaf class; "
                "download the devkit again"
            )
        wnids.append(wnid)
    return wnids


def _leaf_wnids(meta: bytes, name: str) -> dict[int, str]:
    """The WNID of every ILSVRC2012_ID; pictures are of leaves, so synsets with children are left out."""
    synsets = _synsets(meta, name)
    return {
        int(identifier): str(wnid)
        for identifier, wnid, children in zip(
            synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
        )
        if children == 0
    }


def _synsets(meta: bytes, name: str) -> NDArray[Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(meta), squeeze_me=True)  # type: ignore[arg-type]  # reads open files, too
    except Exception as error:  # a damaged file makes the reader fail in any way
        raise UserError(f"{name}: cannot be read as a MATLAB file; download the devkit again") from error
    synsets = np.atleast_1d(content.get("synsets", 0))
    if not {"ILSVRC2012_ID", "WNID", "num_children"} <= set(synsets.dtype.names or ()):
        raise UserError(f"{name}: has no table `synsets` of classes; download the devkit again")
    return synsets


def _read(devkit: Path, file: str) -> bytes:
    """The contents of a file of the devkit, archive or folder."""
    try:
        return (devkit / file).read_bytes() if devkit.is_dir() else _read_packed(devkit, file)
    except (OSError, EOFError, LookupError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{devkit}: {file} is missing or cannot be read; download the devkit again") from error


def _read_packed(devkit: Path, file: str) -> bytes:
    with tarfile.open(devkit) as archive:
        for member in archive:
            if member.isfile() and f"/{member.name}".endswith(f"/{file}"):
                return archive.extractfile(member).read()  # type: ignore[union-attr]  # a file has contents
    raise LookupError(file)
