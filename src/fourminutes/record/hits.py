"""Which pictures a trial got right, as text: four to a hexadecimal digit, the first in the highest bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hits = npt.NDArray[np.bool_]


def packed_hits(hits: Sequence[bool]) -> str:
    """`hits` in digits, filled up with zeros to a whole one."""
    return np.packbits(np.asarray(hits, np.bool_)).tobytes().hex()[: digits_of(len(hits))]


def unpacked_hits(digits: str) -> Hits:
    """What `packed_hits` packed, and after it what the last digit was filled up with; shape (4 x digits,)."""
    whole_bytes = bytes.fromhex(digits + "0" * (len(digits) % 2))
    return np.unpackbits(np.frombuffer(whole_bytes, np.uint8), count=4 * len(digits)).astype(np.bool_)


def digits_of(images: int) -> int:
    """How many digits the hits of so many images have."""
    return -(-images // 4)
