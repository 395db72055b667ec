"""What becomes of an image on its way into a shard."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from shard_sets import encoded, jpeg, picture

from fourminutes.data.image import Inspected, inspect

CHECKS = ("decode", "header")


def inspected(data, *, check="decode", short_side_px=None, quality=90) -> Inspected:
    return inspect(data, check=check, short_side_px=short_side_px, quality=quality)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Of the colours, in grey levels, over patches of 5 pixels' side: JPEG smooths the dots of a palette."""
    assert one.size == other.size
    coarse = [np.asarray(image.reduce(5), np.int16) for image in (one, other)]
    return float(np.abs(coarse[0] - coarse[1]).mean())


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "data",
    [
        jpeg(1),
        encoded(picture(1, "L")),
        encoded(picture(1), progressive=True),
        encoded(picture(1), exif=with_orientation(6)),
        encoded(picture(1), exif=with_orientation(0)),
        encoded(picture(1), exif=b"Exif\0\0 damaged beyond reading"),
        encoded(picture(1), comment=b"\xff\xc0 looks like a frame header"),
        jpeg(1) + bytes(64),
    ],
    ids=["RGB", "grey", "progressive", "rotated", "illegal rotation", "broken EXIF", "comment", "trailing zeros"],
)
def test_plain_jpeg_is_kept_byte_for_byte(data, check):
    assert inspected(data, check=check) == Inspected(data, None)
    assert inspected(memoryview(data), check=check).data == data


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("kind", "mode", "note"),
    [
        ("JPEG", "CMYK", "CMYK"),
        ("PNG", "RGB", "PNG"),
        ("PNG", "RGBA", "PNG"),
        ("PNG", "P", "PNG"),
        ("GIF", "RGB", "GIF"),
        ("BMP", "RGB", "BMP"),
        ("WEBP", "RGB", "WEBP"),
    ],
)
def test_other_formats_become_rgb_jpeg_with_pillows_colours(kind, mode, note, check):
    data = encoded(picture(2, mode), kind)
    made = inspected(data, check=check, quality=95)
    assert made.note == note
    image = opened(made.data)
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert mean_difference(image, opened(data).convert("RGB")) < 3
    assert inspected(made.data, check=check) == Inspected(made.data, None)


def test_inverted_adobe_cmyk_gets_its_true_colours():
    adobe = encoded(picture(3, "CMYK"), quality=95)  # Pillow writes Adobe's marker and inverted inks
    assert adobe[6:11] == b"Adobe"
    assert mean_difference(opened(inspected(adobe, quality=95).data), picture(3)) < 3


def test_ycck_gets_the_colours_pillow_reads():
    ycck = bytearray(encoded(picture(3, "CMYK"), quality=95))
    ycck[17] = 2  # Adobe's transform: the same four components now mean Y, Cb, Cr and K
    made = inspected(bytes(ycck), quality=95)
    assert made.note == "CMYK"
    assert mean_difference(opened(made.data), opened(bytes(ycck)).convert("RGB")) < 3
    assert mean_difference(opened(made.data), picture(3)) > 30


def test_grey_png_stays_grey():
    assert opened(inspected(encoded(picture(4, "L"), "PNG")).data).mode == "L"


def test_header_with_stray_bytes_that_dali_refuses_is_encoded_again():
    plain = jpeg(5)
    first_segment_end = 4 + int.from_bytes(plain[4:6], "big")
    made = inspected(plain[:first_segment_end] + b"xyz" + plain[first_segment_end:])
    assert made.note == "unusual JPEG"
    assert inspected(made.data).note is None


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(range(256)) * 20, "not an image"),
        (jpeg(6)[:-2], "truncated"),
        (jpeg(6)[:300], "truncated"),
        (jpeg(6)[:60], "truncated"),
        (encoded(picture(6), "PNG")[:-200], "truncated"),
    ],
    ids=["empty", "random", "without its end", "without its scan", "without its frame", "half a PNG"],
)
def test_broken_image_is_refused_with_its_reason(data, reason, check):
    refused = inspected(data, check=check)
    assert refused.data is None
    assert refused.note == reason


def test_decoding_finds_a_broken_scan_that_headers_do_not_show():
    plain = encoded(picture(7), progressive=True)
    broken = plain[: len(plain) // 2] + b"\xff\xc0" + plain[len(plain) // 2 + 2 :]
    assert inspected(broken, check="header").note is None
    assert inspected(broken, check="decode").data is None


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("size", "expected"), [((90, 60), (48, 32)), ((61, 200), (32, 105)), ((32, 70), (32, 70))])
def test_short_side_shrinks_what_is_larger_and_enlarges_nothing(size, expected, check):
    data = encoded(picture(8, size=size), quality=95)
    made = inspected(data, check=check, short_side_px=32, quality=95)
    assert made.note is None
    assert opened(made.data).size == expected
    assert (made.data == data) == (size == expected)
    assert mean_difference(opened(made.data), opened(data).resize(expected, Image.Resampling.LANCZOS)) < 3


def test_a_png_that_is_shrunk_is_still_noted():
    assert inspected(encoded(picture(8, size=(90, 60)), "PNG"), short_side_px=32).note == "PNG"


@pytest.mark.parametrize("orientation", [0, 6])
def test_orientation_is_neither_applied_nor_lost_when_encoded_again(orientation):
    data = encoded(picture(9, size=(90, 60)), exif=with_orientation(orientation), comment=b"a remark")
    image = opened(inspected(data, short_side_px=32).data)
    assert image.size == (48, 32)
    assert image.getexif().get(0x0112, 0) == orientation
    assert "comment" not in image.info


def test_encoding_again_gives_the_same_bytes():
    data = encoded(picture(10, "CMYK"))
    assert inspected(data) == inspected(data)
