"""Zips, read without Python's `zipfile` where it keeps every record in memory: the same entries, bytes and refusals as with it."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from celebdit_testing.corpus import PX

from components.ingest.limits import Budget
from components.ingest.sources.synthetic import encode_face
from components.ingest.sources.zip_directory import directory, has_more_records
from components.ingest.sources.zips import ZipSource
from components.ingest.zip_entry import EntryDamaged, ZipEntry, read_zip_entry

FACE = encode_face(0, 0, PX)
NAMES = ["plain.jpg", "größe.jpg", "deep/er/", "deep/er/x.jpg", "long-" + "n" * 300 + ".jpg"]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def write_zip(path: Path, method: int = zipfile.ZIP_STORED, extra: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(NAMES):
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.comment, entry.extra = method, b"c" * index, extra
            archive.writestr(entry, b"" if name.endswith("/") else FACE + b"\0" * index)
        archive.comment = b"of the whole"
    return path


def entries(path: Path) -> list[tuple[str, int, int, int, int, bool]]:
    with path.open("rb") as file:
        return [(r.whole_name, r.packed.header_at, r.packed.size_bytes, r.packed.crc32, r.mode, r.is_dir) for r in directory(file)]


def entries_of_zipfile(path: Path) -> list[tuple[str, int, int, int, int, bool]]:
    with zipfile.ZipFile(path) as archive:
        return [(e.orig_filename, e.header_offset, e.file_size, e.CRC, e.external_attr >> 16, e.is_dir()) for e in archive.infolist()]


def contents(path: Path, *, limit: int = 10**6) -> dict[str, bytes]:
    with path.open("rb") as file, path.open("rb") as data:
        return {r.name: read_zip_entry(data.fileno(), r.packed, limit=limit)[0] for r in directory(file)}


@pytest.mark.parametrize("method", METHODS)
def test_entries_and_bytes_are_those_that_zipfile_reads(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "a.zip", method)
    assert entries(path) == entries_of_zipfile(path)
    with zipfile.ZipFile(path) as archive:
        assert contents(path) == {name: archive.read(name) for name in NAMES}
    assert max(map(len, contents(path, limit=10).values())) == 10


def test_bytes_before_the_zip_move_everything(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    before = contents(path)
    path.write_bytes(b"#!/bin/sh and other things" + path.read_bytes())
    assert entries(path) == entries_of_zipfile(path)
    assert contents(path) == before


@pytest.mark.parametrize("extra_bytes", [4, 120, 5000])
def test_fields_between_header_and_bytes_are_passed_over(tmp_path: Path, extra_bytes: int) -> None:
    path = write_zip(tmp_path / "a.zip", extra=struct.pack("<2H", 0xCAFE, extra_bytes) + bytes(extra_bytes))
    assert contents(path) == contents(write_zip(tmp_path / "b.zip"))


def test_sizes_and_positions_of_64_bits_are_read(tmp_path: Path) -> None:
    """A hole of five gigabytes stands for the entries that would be before."""
    start, hole = io.BytesIO(), 5 * 2**30
    with zipfile.ZipFile(start, "w") as archive:
        archive.writestr("far.jpg", FACE)
    local = start.getvalue()[: 30 + len("far.jpg") + len(FACE)]
    crc = zipfile.ZipFile(start).getinfo("far.jpg").CRC
    field = struct.pack("<2H3Q", 1, 24, len(FACE), len(FACE), hole)
    most = 0xFFFFFFFF
    record = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 33, crc, most, most, 7, len(field), 0, 0, 0, 0, most) + b"far.jpg" + field
    )
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(record), hole + len(local))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, hole + len(local) + len(record), 1)
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        file.seek(hole)
        file.write(local + record + end64 + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, most, most, 0))
    assert entries(path) == entries_of_zipfile(path)
    assert contents(path) == {"far.jpg": FACE}


def test_the_offset_of_stored_bytes_is_that_in_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    for method, is_addressable in ((zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, False)):
        with write_zip(path, method).open("rb") as file, path.open("rb") as other:
            data, lies_at = read_zip_entry(file.fileno(), next(directory(other)).packed, limit=10**6)
        assert data == FACE
        assert (lies_at is not None) is is_addressable
        assert lies_at is None or path.read_bytes()[lies_at : lies_at + len(FACE)] == FACE


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crc32": 1}, "Bad CRC-32"),
        ({"header_at": 5}, "Bad magic number"),
        ({"header_at": 10**9}, "requires a buffer"),
        ({"header_at": -1}, "Invalid argument"),
        ({"header_at": 2**70}, "too large|too big"),
        ({"raw_name": "other.jpg"}, "differ"),
        ({"method": 77}, "not supported"),
    ],
)
def test_an_entry_that_is_not_what_the_directory_says_is_damaged(tmp_path: Path, method: int, change: dict[str, int], message: str) -> None:
    with write_zip(tmp_path / "a.zip", method).open("rb") as file, (tmp_path / "a.zip").open("rb") as other:
        packed: ZipEntry = next(directory(other)).packed._replace(**change)  # type: ignore[arg-type]
        with pytest.raises(EntryDamaged, match=message):
            read_zip_entry(file.fileno(), packed, limit=2 * 10**6)


def test_an_entry_that_the_archive_ends_inside_of_is_damaged(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    with path.open("rb") as file:
        packed = next(directory(file)).packed
        os.truncate(path, packed.header_at + 30 + len(packed.raw_name) + len(FACE) - 1)
        with pytest.raises(EntryDamaged, match="ends inside"):
            read_zip_entry(file.fileno(), packed, limit=10**6)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_directory_with_a_broken_record_is_refused_as_zipfile_refuses_it(tmp_path: Path, at: int) -> None:
    path = write_zip(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    record = data.find(b"PK\1\2")
    for _ in range(at):
        record = data.find(b"PK\1\2", record + 4)
    data[record] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="Bad magic number for central directory"):
        entries_of_zipfile(path)
    with pytest.raises(zipfile.BadZipFile, match="Bad magic number for central directory"):
        entries(path)


def test_records_are_counted_no_further_than_asked(tmp_path: Path) -> None:
    with write_zip(tmp_path / "a.zip").open("rb") as file:
        assert [has_more_records(file, most) for most in (0, 4, 5, 6)] == [True, True, False, False]


@pytest.mark.fault
@pytest.mark.slow
def test_an_entry_of_a_zip_takes_a_hundred_bytes_or_so(tmp_path: Path) -> None:
    """What stays of an entry that was passed on is that its name was seen."""

    def peak_bytes(count: int) -> int:
        path = tmp_path / f"{count}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(count):
                archive.writestr(f"celeba_hq_256/{index:05d}.jpg", b"")
        peaks = []
        for _ in range(3):  # threads that other tests of this process left behind allocate too: the least peak is ours
            source = ZipSource(path, "a.zip")
            tracemalloc.start()
            assert sum(1 for _ in source.candidates(Budget(10**6, 10**9, 10**6, 200))) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return min(peaks)

    assert (peak_bytes(12_500) - peak_bytes(2500)) / 10_000 < 150
