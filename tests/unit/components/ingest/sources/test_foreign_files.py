"""Files that are taken for archives, and archives from other systems: each is named, with what to do, before any of it is hashed."""

import gzip
import io
import os
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import pytest
from celebdit_testing.corpus import PX

from components.errors import BadInput, CelebditError, DataRefused
from components.ingest.limits import Budget
from components.ingest.sources.archives import open_archive
from components.ingest.sources.synthetic import encode_face
from components.ingest.zip_entry import read_zip_entry

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**40, max_entries=10**6, max_ratio=200)
GIB = 2**30
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3000000000\n"
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


def zipped(names: tuple[str, ...] = ("a.jpg",)) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index, name in enumerate(names):
            archive.writestr(name, encode_face(0, index, PX))
    return packed.getvalue()


def last_part() -> bytes:
    """The last part of a zip in three, as Info-ZIP's `zip -s` writes it."""
    data = bytearray(zipped())
    struct.pack_into("<2H", data, data.rindex(b"PK\5\6") + 4, 2, 2)
    return bytes(data)


def last_zip64_part() -> bytes:
    data = zipped()
    at = data.rindex(b"PK\5\6")
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 2, 2, 1, 1, 50, 0)
    return data[:at] + end64 + struct.pack("<4sIQI", b"PK\6\7", 2, at, 3) + data[at:]


FOREIGN: dict[str, tuple[str, bytes, type[CelebditError], str, str]] = {
    "7z": ("faces.zip", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100), BadInput, "is a 7z archive", "pack it again as zip or tar"),
    "rar": ("faces.zip", b"Rar!\x1a\x07\1\0" + bytes(100), BadInput, "is a RAR archive", "pack it again as zip or tar"),
    "zstd": ("faces.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100), BadInput, "compressed with zstd", "pack it again as zip or tar"),
    "html": ("faces.zip", PAGE, DataRefused, "is an HTML page", "fetch the file itself"),
    "html as tar": ("faces.tar.gz", b"<html>login", DataRefused, "is an HTML page", "fetch the file itself"),
    "lfs": ("faces.zip", LFS, DataRefused, "git-lfs pointer", "git lfs pull"),
    "lfs parquet": ("train.parquet", LFS, DataRefused, "git-lfs pointer", "git lfs pull"),
    "annex": ("faces.zip", b"/annex/objects/SHA256E-s1--00.zip\n", DataRefused, "git-annex pointer", "git annex get"),
    "xml": ("faces.zip", XML, DataRefused, "an XML document in place of an archive, which says AccessDenied", "fetch the file itself"),
    "json": ("faces.zip", b'{"code": 403, "message": "accept the terms"}', DataRefused, "JSON text", "fetch the file itself"),
    "empty": ("faces.zip", b"", DataRefused, "is empty", "fetch it again"),
    "jpeg": ("faces.zip", encode_face(0, 0, PX), BadInput, r"a single image \(JPEG\)", "name the folder"),
    "last part": ("faces.zip", last_part(), DataRefused, "not a complete zip: it is part 3 of a split zip", "zip -s 0"),
    "last zip64 part": ("faces.zip", last_zip64_part(), DataRefused, "not a complete zip", "zip -s 0"),
    "first part": ("faces.z01", b"PK\7\10" + zipped()[:500], DataRefused, "part of a split archive", "zip -s 0"),
    "cut in parts": ("faces.zip.001", zipped()[:500], DataRefused, "part of a split archive", "cat "),
    "middle part": ("faces.zip.002", bytes(range(256)), DataRefused, "part of a split archive", "cat "),
    "iso": ("faces.iso", bytes(32769) + b"CD001" + bytes(2000), BadInput, "is an ISO 9660 image", "pack it again as zip or tar"),
    "dmg": ("faces.dmg", os.urandom(3000) + b"koly" + bytes(508), BadInput, "is a disk image of macOS", "pack it again as zip or tar"),
    "compress": ("faces.tar.Z", b"\x1f\x9d\x90" + bytes(900), BadInput, "compressed with `compress`", "pack it again as zip or tar"),
    "lzma": ("faces.tar.lzma", b"\x5d\0\0\x80" + bytes(900), BadInput, "compressed with lzma", "pack it again as zip or tar"),
    "cpio": ("faces.cpio", b"070701" + b"0" * 900, BadInput, "is a cpio archive", "pack it again as zip or tar"),
    "gzipped zip": ("faces.gz", gzip.compress(zipped()), BadInput, "something else that is compressed", "unpack others first"),
    "text": ("faces", b"hello\n" * 200, BadInput, "neither a folder nor a zip or tar", "unpack others first"),
    "begin of a zip": ("faces.zip", zipped()[:500], DataRefused, "has no directory at its end", "fetch it again"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_archive_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    name, data, error, message, hint = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    begun_s = time.monotonic()
    with pytest.raises(error, match=message) as refused:
        list(open_archive(tmp_path / name, name).candidates(BUDGET))
    assert hint in str(refused.value.hint)
    assert time.monotonic() - begun_s < 20


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_in_an_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"outer.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("deep/faces.zip", zipped())
        with pytest.raises(BadInput, match=r"contains no images, but the archive deep/faces\.zip"):
            open_archive(path, "outer.zip")
        return
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("deep/faces.zip")
        info.size = len(zipped())
        tar.addfile(info, io.BytesIO(zipped()))
    ((candidate),) = open_archive(path, "outer.tar").candidates(BUDGET)
    assert candidate.refused is not None
    assert candidate.refused.code == "nested_archive"


def wrapped_zip(path: Path, places: list[int], directory_at: int, *, move: int = 0) -> list[bytes]:
    """A sparse zip over 4 GiB as macOS writes it: entries at `places`, and offsets that keep their lower 32 bits alone."""
    images = [encode_face(0, index, PX) for index in range(len(places))]
    with path.open("wb") as file:
        records = []
        for index, (at, data) in enumerate(zip(places, images, strict=True)):
            name, crc = b"%05d.jpg" % index, zlib.crc32(data)
            file.seek(at)
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, len(data), len(data), len(name), 0) + name + data)
            fields = (20, 20, 0, 0, 0, 33, crc, len(data), len(data), len(name), 0, 0, 0, 0, 0, (at + move) % 2**32)
            records.append(struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name)
        file.seek(directory_at)
        file.write(b"".join(records))
        size_bytes = sum(map(len, records))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(places), len(places), size_bytes, directory_at % 2**32, 0))
    return images


@pytest.mark.parametrize(
    ("places", "directory_at"),
    [
        ([0, 4 * GIB + 5000], 4 * GIB + 9000),
        ([0, 3 * GIB, 4 * GIB + 100, 7 * GIB, 9 * GIB], 9 * GIB + 5000),
        ([0, 5000, 8 * GIB + 5000], 8 * GIB + 12_000),  # as if nothing had wrapped but the last: its entry is over 4 GiB away
    ],
)
def test_a_zip_over_4_gib_of_macos_is_read(tmp_path: Path, places: list[int], directory_at: int) -> None:
    images = wrapped_zip(tmp_path / "finder.zip", places, directory_at)
    assert (tmp_path / "finder.zip").stat().st_blocks * 512 < 2**20, "the file is sparse"
    source = open_archive(tmp_path / "finder.zip", "finder.zip")
    archive = os.open(tmp_path / "finder.zip", os.O_RDONLY)
    try:
        entries = [candidate.packed for candidate in source.candidates(BUDGET)]
        assert [read_zip_entry(archive, entry, limit=10**6)[0] for entry in entries if entry is not None] == images
    finally:
        os.close(archive)


def test_a_zip_over_4_gib_whose_offsets_cannot_be_made_out_says_to_pack_it_again(tmp_path: Path) -> None:
    wrapped_zip(tmp_path / "finder.zip", [0, 4 * GIB + 5000], 4 * GIB + 9000, move=7)
    with pytest.raises(DataRefused, match="larger than 4 GiB and has no zip64 fields") as refused:
        open_archive(tmp_path / "finder.zip", "finder.zip")
    assert "pack it again with `zip` or `tar`" in str(refused.value.hint)


def test_a_zip_behind_other_bytes_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "prefixed.zip").write_bytes(b"MZ" + bytes(998) + zipped(("a.jpg", "b.jpg")))
    assert len(list(open_archive(tmp_path / "prefixed.zip", "prefixed.zip").candidates(BUDGET))) == 2


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_read_whatever_it_is_called(tmp_path: Path, mode: Literal["w", "w:gz", "w:bz2", "w:xz"]) -> None:
    """Called like a zip, and beginning with the name of a file that is like the mark of another archive."""
    with tarfile.open(tmp_path / "faces.zip", mode) as tar:
        for name in ("07070123.jpg", "xar!.jpg", "12-lh5-.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(encode_face(0, 0, PX))
            tar.addfile(info, io.BytesIO(encode_face(0, 0, PX)))
    candidates = list(open_archive(tmp_path / "faces.zip", "faces.zip").candidates(BUDGET))
    assert [candidate.refused for candidate in candidates] == [None, None, None]


@pytest.mark.parametrize("first", ["07070123.jpg", "xar!.jpg", "12-lh5-.jpg"])
def test_a_tar_that_begins_like_another_archive_is_a_tar(tmp_path: Path, first: str) -> None:
    with tarfile.open(tmp_path / "faces.tar", "w") as tar:
        info = tarfile.TarInfo(first)
        info.size = len(encode_face(0, 0, PX))
        tar.addfile(info, io.BytesIO(encode_face(0, 0, PX)))
    assert len(list(open_archive(tmp_path / "faces.tar", "faces.tar").candidates(BUDGET))) == 1
