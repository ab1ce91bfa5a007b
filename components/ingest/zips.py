"""Images in a zip archive, streamed.

Promises: an entry is never a path and never on disk; the directory is measured before it is loaded; every entry gets its verdict.
"""

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from components.errors import BadInput, DataRefused
from components.ingest.candidates import (
    IMAGE_SUFFIXES,
    Budget,
    Candidate,
    Names,
    is_image_name,
    refused_by_name,
    too_many_bytes,
    too_many_entries,
)
from components.ingest.verdicts import Rejected
from components.storage import file_sha256

RATIO_FROM_BYTES = 2**20
_DAMAGED = (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_RECORD_BYTES = 46
_ZIP64_END_BYTES = 56 + 20
_LOOKED_THROUGH = 10**5


class ZipSource:
    """The entries of a zip file."""

    def __init__(self, path: Path, named: str) -> None:
        self._path = path
        self._named = named
        self._count = self._checked()

    def _checked(self) -> int | None:
        """Return how many images a small archive holds; a large one is not looked through twice."""
        if _num_records(self._path) > 10**5:
            return None
        with self._opened() as archive:
            count = sum(is_image_name(entry.filename) for entry in archive.infolist() if not entry.is_dir())
        if not count:
            raise BadInput(
                f"data.source {self._named} contains no images",
                hint=f"entries ending in {', '.join(IMAGE_SUFFIXES)} are taken, at any depth",
            )
        return count

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except UnicodeDecodeError as error:
            raise DataRefused(
                f"data.source {self._named} has a name that says it is UTF-8 and is not", hint="pack it again with another program"
            ) from error
        except _DAMAGED as error:
            raise DataRefused(f"data.source {self._named} cannot be opened as a zip: {error}", hint="fetch it again") from error

    def fingerprint(self) -> str:
        return file_sha256(self._path)

    def count(self) -> int | None:
        return self._count

    def described(self) -> str:
        return self._named

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        entries = _num_records(self._path)
        if entries > budget.max_entries:
            raise too_many_entries(self._named, budget)
        names, total_bytes = Names(), 0
        with self._opened() as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                refused = _refused(entry, budget, seen=names.again(entry.filename))
                if refused is not None:
                    yield Candidate(entry.orig_filename, b"", refused)
                    continue
                candidate = _read(archive, entry, budget.max_image_bytes)
                total_bytes += len(candidate.data)
                if total_bytes > budget.max_total_bytes:
                    raise too_many_bytes(self._named, budget)
                yield candidate


def _num_records(path: Path) -> int:
    """Count the records of a zip's directory without keeping them; the count that the zip names is only a claim."""
    with path.open("rb") as file:
        end = _end_record(file)
        if end is None:
            return 0
        size_bytes, location = end
        file.seek(max(0, location - size_bytes))
        count = read = 0
        while read < size_bytes and (record := file.read(_RECORD_BYTES)).startswith(b"PK\1\2") and len(record) == _RECORD_BYTES:
            rest = sum(struct.unpack("<3H", record[28:34]))
            file.seek(rest, io.SEEK_CUR)
            read += _RECORD_BYTES + rest
            count += 1
        return count


def _end_record(file: IO[bytes]) -> tuple[int, int] | None:
    """Return size and end of a zip's directory, as the zip module finds them."""
    found = getattr(zipfile, "_EndRecData")(file)  # noqa: B009 - private, and the only reader of the record there is
    if not found:
        return None
    behind = _ZIP64_END_BYTES if found[0] == b"PK\6\6" else 0
    return int(found[5]), int(found[9]) - behind


def _refused(entry: zipfile.ZipInfo, budget: Budget, *, seen: bool) -> Rejected | None:
    """Return the verdict on an entry of which the directory says enough, else None."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return Rejected("link", "a symbolic link") if stat.S_ISLNK(kind) else Rejected("special_file", "a device, pipe or socket")
    by_name = Rejected("unsafe_name", "holds a zero byte") if "\0" in entry.orig_filename else refused_by_name(entry.filename)
    if by_name is not None:
        return by_name
    if seen:
        return Rejected("duplicate_name", "the archive has an entry of this name already")
    if entry.flag_bits & 1:
        return Rejected("encrypted", "needs a password")
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > budget.max_ratio * max(entry.compress_size, 1):
        return Rejected("compressed_too_far", f"{entry.compress_size} bytes unpack to {entry.file_size}")
    return None


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> Candidate:
    try:
        with archive.open(entry) as file:
            return Candidate(entry.filename, file.read(max_bytes + 1))
    except _DAMAGED as error:
        return Candidate(entry.filename, b"", Rejected("damaged_entry", str(error)[:200]))
