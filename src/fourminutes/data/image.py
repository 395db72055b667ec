"""One image on its way into a shard: kept as it is, encoded again, or refused.

What leaves here is decodable by DALI and by Pillow alike. Only a plain JPEG (8 bits, Huffman coded, baseline or
progressive, one or three components, a header without stray bytes) is kept byte for byte: DALI raises on GIF and on
stray bytes in a header, which Pillow forgives, and takes the whole batch down with it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError, features

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # named, so that nothing that runs programs (EPS) is opened
_ORIENTATION = 0x0112  # EXIF tag
_END_OF_IMAGE = b"\xff\xd9"
# Markers of ITU-T T.81, table B.1.
_PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}  # SOF0..2: baseline, extended, progressive; all Huffman coded
_BEFORE_FRAME = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, restart interval, comment, applications' own
_MARKER = 0xFF  # starts a marker; repeated, it fills


class Inspected(NamedTuple):
    """What became of an image."""

    data: bytes | memoryview | None
    """What goes into the shard: the very bytes that came, or a JPEG made from them; None where refused."""
    note: str | None
    """What was found (``CMYK``, ``PNG``, ``truncated``, ...) where the image was converted or refused.

    None where it was kept, and where a plain JPEG was only shrunk: the recipe says that, and 1.28 million notes would
    say no more.
    """


def inspect(
    data: bytes | memoryview, *, check: Literal["decode", "header"], short_side_px: int | None, quality: int
) -> Inspected:
    """Decide what becomes of the image in `data`; the same answer everywhere with the same Pillow and libjpeg.

    CMYK, PNG, GIF and the like become RGB as Pillow's ``convert("RGB")`` makes them (the reading that torchvision
    gives them); grey stays grey. An EXIF orientation is neither applied nor lost; other metadata of an image that has
    to be encoded again is dropped.

    Args:
        data: the file's bytes.
        check: ``decode`` decodes every image in full; ``header`` reads only the headers of a plain JPEG that ends
            with the end-of-image marker, and decodes whatever else it meets.
        short_side_px: shrink to this shorter side, in pixels, whatever is larger (Lanczos); None leaves sizes alone.
        quality: of what is encoded again, in libjpeg's scale of 1 to 100.
    """
    size = _plain_jpeg_size(data)
    too_large = size is not None and short_side_px is not None and min(size) > short_side_px
    keeps = size is not None and not too_large
    if keeps and check == "header" and data[-2:] == _END_OF_IMAGE:
        return Inspected(data, None)
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
            if keeps:
                return Inspected(data, None)
            return Inspected(_encoded(image, short_side_px, quality), _found(image) if size is None else None)
    except MemoryError:  # says something about this machine, not about the image
        raise
    except Exception as error:  # decoders raise whatever they like on broken bytes, struct.error and SyntaxError too
        return Inspected(None, _reason(data, error))


def encoder_versions() -> dict[str, str]:
    """Versions of the libraries that decide the bytes of images encoded again."""
    return {"pillow": features.version("pil") or "", "libjpeg": features.version("libjpeg_turbo") or ""}


def _plain_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width in pixels from a plain JPEG's frame header; None where `data` is anything else.

    Walks the marker segments of ITU-T T.81, annex B, up to the frame header.
    """
    if data[:2] != b"\xff\xd8":
        return None
    try:
        position = 2
        while data[position] == _MARKER:
            marker = data[position + 1]
            if marker in _PLAIN_FRAMES:
                return _frame_size(data[position + 4 : position + 10])
            if marker in _BEFORE_FRAME:
                position += 2 + (data[position + 2] << 8 | data[position + 3])
            elif marker == _MARKER:
                position += 1
            else:
                return None
    except IndexError:
        return None
    return None


def _frame_size(frame: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of a frame of 8 bits and one or three components; None for others."""
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    plain = frame[0] == 8 and frame[5] in {1, 3} and height > 0 and width > 0
    return (height, width) if plain else None


def _encoded(image: Image.Image, short_side_px: int | None, quality: int) -> bytes:
    orientation = image.getexif().get(_ORIENTATION)
    pixels = image if image.mode == "L" else image.convert("RGB")
    if short_side_px is not None and min(pixels.size) > short_side_px:
        scale = short_side_px / min(pixels.size)
        width, height = (max(short_side_px, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    if orientation is not None:
        exif[_ORIENTATION] = orientation
    out = io.BytesIO()
    # The rest of the metadata must go: a colour profile for CMYK is wrong for RGB, previews outweigh a small image.
    pixels.info = {}
    pixels.save(out, "JPEG", quality=quality, subsampling="4:2:0", exif=exif.tobytes() if orientation else b"")
    return out.getvalue()


def _found(image: Image.Image) -> str:
    """What an image that is no plain JPEG is: its colours or its format."""
    if image.format not in {"JPEG", "MPO"}:
        return image.format or "unknown format"
    return image.mode if image.mode not in {"L", "RGB"} else "unusual JPEG"


def _reason(data: bytes | memoryview, error: Exception) -> str:
    """Why an image is refused, in words that don't depend on the machine (Pillow's own messages hold addresses)."""
    if not data:
        return "empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    return "truncated" if "truncated" in str(error).lower() else "broken"


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of odd metadata and of large images; neither makes an image unfit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
