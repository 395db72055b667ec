"""Where the members of a tar lie, and which tars are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from fourminutes.data.tar import Members, Region, first_member, list_members, opened_tar
from fourminutes.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(contents: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **fields) -> bytes:
    """A tar of these members; `fields` are set on every header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            for key, value in fields.items():
                setattr(header, key, value)
            archive.addfile(header, io.BytesIO(content))
    return out.getvalue()


def contents_of(path: Path, members: Members) -> dict[str, bytes]:
    whole = path.read_bytes()
    places = zip(members.names, members.offsets, members.lengths, strict=True)
    return {name: whole[offset : offset + length] for name, offset, length in places}


def listed(path: Path) -> Members:
    with opened_tar(path) as region:
        return list_members(region)


def refusal(path: Path, tar: bytes) -> str:
    path.write_bytes(tar)
    with pytest.raises(UserError) as refused:
        listed(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 5_000, 200_000])
def test_the_listed_ranges_hold_the_members_bytes(tmp_path, form, length):
    contents = {f"n01440764_{number}.JPEG": bytes([number]) * length for number in range(60)}
    path = tmp_path / "x.tar"
    path.write_bytes(packed(contents, form))

    assert contents_of(path, listed(path)) == contents


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["a" * 60 + "/" + "b" * 70 + ".JPEG", "picture-\u00e9\u4e2d.JPEG"])
def test_long_and_non_ascii_names_are_read_in_every_form(tmp_path, form, name):
    contents = {"first.JPEG": b"1", name: b"22", "last.JPEG": b"333"}
    path = tmp_path / "x.tar"
    path.write_bytes(packed(contents, form))

    assert contents_of(path, listed(path)) == contents


@pytest.mark.parametrize(
    "headers", [{"path": "x" * 200 + ".JPEG"}, {"comment": "made in 2012"}], ids=["long name", "comment"]
)
def test_a_tar_inside_another_is_read_where_it_lies(tmp_path, headers):
    inner = packed({"a.JPEG": b"A" * 700}, tarfile.PAX_FORMAT, pax_headers=headers)
    path = tmp_path / "x.tar"
    path.write_bytes(packed({"n01440764.tar": inner, "n01440765.tar": b"after"}))

    with opened_tar(path) as outer:
        found = list_members(outer)
        start = found.offsets[0]
        members = list_members(Region(outer.descriptor, start, start + found.lengths[0], "inner"))

    assert contents_of(path, members) == {headers.get("path", "a.JPEG"): b"A" * 700}


def test_folders_are_left_out_and_a_leading_dot_is_dropped(tmp_path):
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "a.JPEG").write_bytes(b"a")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "tree", ".")

    assert contents_of(path, listed(path)) == {"deep/a.JPEG": b"a"}


def test_an_empty_tar_has_no_members(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(packed({}))

    assert listed(path) == Members()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_tar_cut_anywhere_is_refused_with_the_member(tmp_path, form):
    long_name = "n" * 120 + ".JPEG"
    contents = {"a.JPEG": b"A" * 1_000, (long_name if form != FORMATS["ustar"] else "b.JPEG"): b"B" * 1_000}
    whole = packed(contents, form)
    end_of_contents = len(whole.rstrip(b"\0"))
    for size in range(256, end_of_contents, 256):
        assert "download it again" in refusal(tmp_path / "x.tar", whole[:size])
    assert "truncated in member a.JPEG" in refusal(tmp_path / "x.tar", whole[:1_000])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_tar_without_its_end_marker_is_refused(tmp_path, form):
    name = "b.JPEG" if form == FORMATS["ustar"] else "b" * 120 + ".JPEG"
    members = packed({"a.JPEG": b"A" * 512, name: b"B" * 512}, form).rstrip(b"\0")

    assert "end marker is missing" in refusal(tmp_path / "x.tar", members)


@pytest.mark.parametrize("place", [0, 100, 130, 150, 156])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_one_changed_byte_in_a_header_is_noticed(tmp_path, form, place):
    name = "b.JPEG" if form == FORMATS["ustar"] else "b" * 120 + ".JPEG"
    whole = bytearray(packed({name: b"B" * 600, "a.JPEG": b"A" * 600}, form))
    header_of_a = whole.index(b"a.JPEG")
    whole[header_of_a + place] ^= 0x01

    assert "damaged" in refusal(tmp_path / "x.tar", bytes(whole))


@pytest.mark.parametrize("size", [b"-0000001000", b"+0000001000", b"000000zz000", b"00000000900"])
def test_a_size_that_is_no_number_is_refused(tmp_path, size):
    header = bytearray(packed({"a.JPEG": b"A" * 512})[:512])
    header[124:135] = size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)

    assert "damaged" in refusal(tmp_path / "x.tar", bytes(header) + bytes(4_096))


@pytest.mark.parametrize("content", [b"<html>log in to download</html>" * 40, b""], ids=["a web page", "nothing"])
def test_what_is_no_tar_is_refused(tmp_path, content):
    assert "at its start" in refusal(tmp_path / "x.tar", content)


@pytest.mark.parametrize("name", ["/etc/a.JPEG", "../a.JPEG", "n01440764/../../a.JPEG", ".."])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_path_that_leads_out_is_refused_by_name(tmp_path, form, name):
    assert f"member {name} leads out" in refusal(tmp_path / "x.tar", packed({name: b"a"}, form))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=repr
)
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_links_and_devices_are_refused_by_name(tmp_path, form, kind):
    for name in ("a.JPEG", "n" * 120 + "a.JPEG") if form != FORMATS["ustar"] else ("a.JPEG",):
        tar = packed({name: b""}, form, type=kind, linkname="b.JPEG")
        assert f"{name} is a link, a device" in refusal(tmp_path / "x.tar", tar)


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.tar: cannot be read: No such file"):
        listed(tmp_path / "absent.tar")


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_first_member_is_found_without_the_others(tmp_path: Path, form: int):
    long = "a/" * 60 + "first"
    (tmp_path / "whole.tar").write_bytes(packed({long: b"1", "second": b"2"}, form))
    with opened_tar(tmp_path / "whole.tar") as region:
        assert first_member(region) == long


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no tar"),
        (b"<!DOCTYPE html>" * 100, "is no tar"),
        (packed({}), "is no tar"),
        (packed({"first": b"1" * 3000})[:2048], "is truncated"),
        (packed({"first": b"1" * 3000})[:2000], "is truncated"),
    ],
)
def test_what_has_no_first_member_or_no_end_is_refused(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "wrong.tar").write_bytes(content)
    with opened_tar(tmp_path / "wrong.tar") as region, pytest.raises(UserError, match=words):
        first_member(region)
