"""The bytes of one entry of a zip, read where they lie.

Promises: reads from a file that others read at the same time, moves no position and writes nothing; what comes back has passed the
archive's own check, or an error is raised; never more than `limit` bytes are unpacked. Which entries there are is in `zip_directory.py`.
"""

import lzma
import os
import struct
import zipfile
import zlib
from typing import IO, NamedTuple, cast

_HEADER = struct.Struct("<4s5H3I2H")
_LIKELY_EXTRA_BYTES = 128
_DAMAGED = (
    zipfile.BadZipFile,
    OSError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


class Packed(NamedTuple):
    """Where an entry lies and how it is packed, as the directory says; `raw_name` holds the name's bytes as Latin-1."""

    header_at: int
    packed_bytes: int
    size_bytes: int
    method: int
    crc32: int
    raw_name: str


class EntryDamaged(Exception):
    """The archive's own check of an entry fails, or it cannot be unpacked."""


def read_packed(archive: int, packed: Packed, *, limit: int) -> tuple[bytes, int | None]:
    """Return the first `limit` bytes of an entry of the open file `archive`, and where they lie if they lie there as they are.

    Raises:
        EntryDamaged: if they are not what the directory says.
    """
    try:
        return _read(archive, packed, limit)
    except _DAMAGED as error:
        raise EntryDamaged(str(error)[:200] or type(error).__name__) from error


def _read(archive: int, packed: Packed, limit: int) -> tuple[bytes, int | None]:
    as_they_are = packed.method == zipfile.ZIP_STORED and packed.packed_bytes == packed.size_bytes <= limit
    likely_bytes = _HEADER.size + len(packed.raw_name) + _LIKELY_EXTRA_BYTES
    start = os.pread(archive, likely_bytes + (packed.size_bytes if as_they_are else 0), packed.header_at)
    ahead = _bytes_ahead(start, packed)
    if not as_they_are:
        return _unpacked(archive, packed, packed.header_at + ahead, limit), None
    data = start[ahead : ahead + packed.size_bytes]
    if len(data) < packed.size_bytes:
        data = os.pread(archive, packed.size_bytes, packed.header_at + ahead)
    if len(data) < packed.size_bytes:
        raise EOFError("the archive ends inside of it")
    if zlib.crc32(data) != packed.crc32:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {packed.raw_name!r}")
    return data, packed.header_at + ahead


def _bytes_ahead(start: bytes, packed: Packed) -> int:
    """Return how far after an entry's own header its bytes begin, once that header is known to be the right one."""
    magic, *_, name_bytes, extra_bytes = _HEADER.unpack_from(start)
    if magic != b"PK\3\4":
        raise zipfile.BadZipFile("Bad magic number for file header")
    name = start[_HEADER.size : _HEADER.size + name_bytes]
    if name != packed.raw_name.encode("latin-1"):
        raise zipfile.BadZipFile(f"File name in directory {packed.raw_name!r} and header {name!r} differ.")
    return int(_HEADER.size + name_bytes + extra_bytes)


def _unpacked(archive: int, packed: Packed, data_at: int, limit: int) -> bytes:
    info = zipfile.ZipInfo(packed.raw_name)
    info.compress_type, info.CRC = packed.method, packed.crc32
    info.compress_size, info.file_size = packed.packed_bytes, packed.size_bytes
    with zipfile.ZipExtFile(cast(IO[bytes], _From(archive, data_at)), "r", info) as file:
        return file.read(limit)


class _From:
    """A file from a position on, without the position that its other readers share."""

    def __init__(self, file: int, at: int) -> None:
        self._file = file
        self._at = at

    def read(self, size_bytes: int) -> bytes:
        data = os.pread(self._file, size_bytes, self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        """Leave the file open for its other readers."""
