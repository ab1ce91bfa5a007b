"""Limits of a source on this machine: bytes of an image, entries, unpacked bytes, and the memory that reading takes."""

import gzip
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from celebdit_testing.local_sources import BUDGET, config, make_source, opened, read

from components.errors import DataRefused
from components.ingest.limits import Budget


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_at_most_one_byte_more_than_the_budget_is_read(tmp_path: Path, kind: str) -> None:
    small = Budget(max_image_bytes=100, max_total_bytes=2**32, max_entries=100, max_ratio=200)
    assert max(len(candidate.data) for candidate in read(opened(make_source(kind, tmp_path)), small)) == 101


def zip_of(path: Path, entries: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(entries):
            archive.writestr(f"{index:07d}.jpg", b"")
    return path


def test_too_many_entries_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    small = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=99, max_ratio=200)
    with pytest.raises(DataRefused, match="more than 99 entries"):
        next(opened(zip_of(tmp_path / "many.zip", 100)).candidates(small))
    assert len(list(opened(zip_of(tmp_path / "few.zip", 99)).candidates(small))) == 99


def many_entries(path: Path, count: int) -> None:
    """Write a zip whose directory has `count` records; all point at one empty file."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 11, 0) + b"0000000.jpg"
    record = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0)
    records = b"".join(record + b"%07d.jpg" % index for index in range(count))
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(records), len(local))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + len(records), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(local + records + end64 + locator + end)


@pytest.mark.fault
@pytest.mark.slow
def test_too_many_entries_are_refused_in_little_memory(tmp_path: Path) -> None:
    many_entries(tmp_path / "many.zip", 300_000)
    tracemalloc.start()
    with pytest.raises(DataRefused, match="more than 200000 entries"):
        list(opened(tmp_path / "many.zip").candidates(config().budget()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_a_tar_of_many_entries_takes_no_more_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("empty.txt").tobuf(tarfile.USTAR_FORMAT)
    with gzip.open(tmp_path / "many.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(header * 100)
        file.write(bytes(1024))
    tracemalloc.start()
    number = sum(1 for _ in opened(tmp_path / "many.tar.gz", max_ratio=10**6).candidates(BUDGET))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == 20_000
    assert peak < 8 * 2**20


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("zeros.bmp")
    header.size = 200 * 2**20
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(200):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    with pytest.raises(DataRefused, match="unpacks to more than 200 times its size"):
        list(opened(tmp_path / "bomb.tar.gz").candidates(BUDGET))
    with pytest.raises(DataRefused, match="unpacks to more than 10000 bytes"):
        list(opened(make_source("tar", tmp_path)).candidates(Budget(10**6, 10_000, 100, 200)))
    with pytest.raises(DataRefused, match="unpacks to more than 5000 bytes"):
        list(opened(make_source("zip", tmp_path)).candidates(Budget(10**6, 5000, 100, 200)))
    with pytest.raises(DataRefused, match="has more than 5000 bytes"):
        list(opened(make_source("folder", tmp_path)).candidates(Budget(10**6, 5000, 100, 200)))


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "liar.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataRefused, match="a header claims 8589934592 bytes"):
        list(opened(tmp_path / "liar.tar").candidates(BUDGET))
