"""Tar archives made to use up a reader: they are refused, and cost this process neither memory nor time."""

import contextlib
import gzip
import io
import os
import resource
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from celebdit_testing.processes import processes_below
from PIL import Image

from components.errors import BadInput, CelebditError, DataRefused, TemporaryFailure
from components.ingest.limits import Budget
from components.ingest.sources import tars
from components.ingest.sources.archives import open_archive
from components.ingest.sources.tars import TarSource
from components.system.confinement import is_confined

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)
MIB = 2**20


def header(kind: bytes, data: bytes) -> bytes:
    """A header that describes others, and its data."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def record(keyword: bytes, value: bytes) -> bytes:
    """A line of an extended header, which begins with its own length."""
    length = len(keyword) + len(value) + 3
    while len(str(length)) + len(keyword) + len(value) + 3 != length:
        length = len(str(length)) + len(keyword) + len(value) + 3
    return b"%d %s=%s\n" % (length, keyword, value)


def image() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    info = tarfile.TarInfo("a.png")
    info.size = len(data.getvalue())
    return info.tobuf(tarfile.USTAR_FORMAT) + data.getvalue() + bytes(-info.size % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)
READER = "components.ingest.sources.tar_reader"


def chained(kind: bytes, data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([header(kind, data) * 3000, image(), END])


def global_headers() -> Iterator[bytes]:
    """Sixteen megabytes of records for all entries that follow, each with a name of its own."""
    for block in range(16):
        yield header(tarfile.XGLTYPE, b"".join(b"12 %07x=\n" % number for number in range(block * 80_000, (block + 1) * 80_000)))
    yield image()
    yield END


HOSTILE = {
    "chained extended headers": (chained(tarfile.XHDTYPE, record(b"comment", b"x")), "describe each other without end"),
    "chained long names": (chained(tarfile.GNUTYPE_LONGNAME, b"name\0"), "describe each other without end"),
    "chained long links": (chained(tarfile.GNUTYPE_LONGLINK, b"name\0"), "describe each other without end"),
    "chained global headers": (chained(tarfile.XGLTYPE, record(b"comment", b"x")), "describe each other without end"),
    "many records": (global_headers, "of memory|describe each other"),
}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [*((kind, ".tar") for kind in HOSTILE if kind != "many records"), ("many records", ".tar.gz"), ("chained extended headers", ".bin")],
)
def test_headers_without_end_are_refused_and_cost_this_process_nothing(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "_MEMORY_BYTES", 64 * MIB)
    make, message = HOSTILE[kind]
    path = tmp_path / f"hostile{suffix}"
    with gzip.open(path, "wb", compresslevel=1) if suffix != ".tar" else path.open("wb") as file:
        for part in make():
            file.write(part)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refusal = (BadInput, "neither a folder nor a zip or tar archive") if suffix == ".bin" else (DataRefused, message)
    with pytest.raises(refusal[0], match=refusal[1]):
        list(open_archive(path, "hostile").candidates(BUDGET))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes < 64 * MIB


def negative(size_bytes: int) -> bytes:
    """A header of an image with a size below zero, which leads a reader back or, at -512, to the end without an error."""
    raw = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.USTAR_FORMAT))
    raw[124:136] = (256**12 + size_bytes).to_bytes(12, "big")
    raw[148:156] = b"%06o\0 " % sum(raw[:148] + b" " * 8 + raw[156:])
    return bytes(raw)


@pytest.mark.parametrize(
    "entry",
    [negative(-512), negative(-1), negative(-2048), header(tarfile.XHDTYPE, record(b"size", b"-512")) + image()],
    ids=["-512", "-1", "-2048", "-512 by an extended header"],
)
def test_a_size_below_zero_hides_no_image_that_follows(entry: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(image() + entry + image() + END)
    with pytest.raises(DataRefused, match=r"is corrupt: a header claims -\d+ bytes"):
        list(TarSource(path, "hostile").candidates(BUDGET))


@pytest.mark.parametrize("size_bytes", [512, 10_240, 60 * 2**30])
def test_an_archive_of_zeros_is_refused_before_it_is_hashed(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "images.tar"
    with path.open("wb") as file:
        file.truncate(size_bytes)
    begun_s = time.monotonic()
    with pytest.raises(DataRefused, match="is a tar archive without entries"):
        open_archive(path, "images.tar")
    assert time.monotonic() - begun_s < 20


def test_an_archive_of_git_and_long_names_are_read(tmp_path: Path) -> None:
    """Each of the headers that are refused above has an honest use."""
    path = tmp_path / "honest.tar"
    long_name = f"{'deep/' * 60}a.png"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "4f7d992"}) as archive:
        for name in ("ü.png", long_name):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"data"))
    assert [(found.name, found.data) for found in TarSource(path, "honest").candidates(BUDGET)] == [
        ("ü.png", b"data"),
        (long_name, b"data"),
    ]


def test_an_archive_whose_reader_hangs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of half a million digits: Python's reader looks for the end of it again from each digit (CVE-2024-6232)."""
    monkeypatch.setattr(tars, "_PATIENCE_S", 1.5)
    path = tmp_path / "slow.tar"
    path.write_bytes(header(tarfile.XHDTYPE, b"1" * 500_000) + image() + END)
    started_s = time.monotonic()
    with pytest.raises(DataRefused, match="nothing could be read of it for 2 s"):
        list(TarSource(path, "slow").candidates(BUDGET))
    assert time.monotonic() - started_s < 20
    assert not processes_below(os.getpid(), running=READER)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, TemporaryFailure, "was killed by SIGKILL"),
        (signal.SIGTERM, TemporaryFailure, "was killed by SIGTERM"),
        (signal.SIGSEGV, DataRefused, "is corrupt: the process that reads it ended"),
    ],
)
def test_an_archive_whose_reader_is_killed_is_not_called_corrupt(
    number: int, kind: type[CelebditError], words: str, tmp_path: Path
) -> None:
    """The system kills a process when memory runs out; a crash may come from the archive."""
    path = tmp_path / "faces.tar"
    path.write_bytes(large_archive())
    candidates = TarSource(path, "faces.tar").candidates(BUDGET)
    next(candidates)
    (reader,) = processes_below(os.getpid(), running=READER)
    reader.send_signal(number)
    with pytest.raises(kind, match=words) as refused:
        list(candidates)
    assert refused.value.hint
    assert not processes_below(os.getpid(), running=READER)


def large_archive() -> bytes:
    """Images of more bytes than a pipe and a buffer hold, so that the process that reads them waits."""
    content, archive = b"\x89PNG\r\n\x1a\n".ljust(999_936, b"\0"), image()
    for number in range(8):
        info = tarfile.TarInfo(f"{number}.png")  # of a name that comes again, the bytes are not passed on
        info.size = len(content)
        archive += info.tobuf(tarfile.USTAR_FORMAT) + content
    return archive + END


@pytest.mark.parametrize("suffix", [".tar", ".bin"])
def test_a_reader_that_is_killed_at_once_says_nothing_about_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"faces{suffix}"
    path.write_bytes(image() + END)
    over = threading.Event()
    killed: list[int] = []

    def kill_readers() -> None:
        while not over.wait(0.002):
            for reader in processes_below(os.getpid(), running=READER):
                with contextlib.suppress(psutil.NoSuchProcess):
                    reader.kill()
                    killed.append(reader.pid)

    thread = threading.Thread(target=kill_readers)
    thread.start()
    try:
        with pytest.raises(TemporaryFailure, match="was killed by SIGKILL"):
            list(open_archive(path, "faces").candidates(BUDGET))
    finally:
        over.set()
        thread.join()
    assert killed


def test_the_reader_has_no_secret_and_cannot_open_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-in-a-reader")
    path = tmp_path / "images.tar"
    path.write_bytes(image() * 3000 + END)
    candidates = TarSource(path, "images").candidates(BUDGET)
    next(candidates)
    (reader,) = processes_below(os.getpid(), running=READER)
    assert b"canary-in-a-reader" not in Path(f"/proc/{reader.pid}/environ").read_bytes()
    assert is_confined(reader.pid)
    candidates.close()  # type: ignore[attr-defined]
    assert not reader.is_running()
