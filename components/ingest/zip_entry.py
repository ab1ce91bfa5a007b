"""Read one entry of a zip in place.

Promises: several readers may share the open file, because its position is not used; bytes that are returned match the archive's
checksum, or an error is raised; at most `limit` bytes are decompressed. The directory is read in `sources/zip_directory.py`.

The standard library's `ZipFile` is not used: it reads the whole directory into memory, and two threads cannot read at once.
"""

import lzma
import os
import struct
import zipfile
import zlib
from typing import IO, NamedTuple, cast

from components.errors import shorten

_HEADER = struct.Struct("<4s5H3I2H")
_TYPICAL_EXTRA_BYTES = 128
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


class ZipEntry(NamedTuple):
    """An entry as the directory describes it: position, sizes, compression; `raw_name` holds the name's bytes as Latin-1."""

    header_at: int
    packed_bytes: int
    size_bytes: int
    method: int
    crc32: int
    raw_name: str


class EntryDamaged(Exception):
    """An entry does not match its checksum, or cannot be decompressed."""


def read_zip_entry(archive: int, packed: ZipEntry, *, limit: int) -> tuple[bytes, int | None]:
    """Return the first `limit` bytes of an entry of the open file `archive`, and their offset if they are stored uncompressed.

    Raises:
        EntryDamaged: if they do not match the directory.
    """
    try:
        return _read(archive, packed, limit)
    except _DAMAGED as error:
        raise EntryDamaged(shorten(str(error), max_characters=200) or type(error).__name__) from error


def _read(archive: int, packed: ZipEntry, limit: int) -> tuple[bytes, int | None]:
    as_they_are = packed.method == zipfile.ZIP_STORED and packed.packed_bytes == packed.size_bytes <= limit
    likely_bytes = _HEADER.size + len(packed.raw_name) + _TYPICAL_EXTRA_BYTES
    start = os.pread(archive, likely_bytes + (packed.size_bytes if as_they_are else 0), packed.header_at)
    ahead = _header_bytes(start, packed)
    if not as_they_are:
        return _decompress(archive, packed, packed.header_at + ahead, limit), None
    data = start[ahead : ahead + packed.size_bytes]
    if len(data) < packed.size_bytes:
        data = os.pread(archive, packed.size_bytes, packed.header_at + ahead)
    if len(data) < packed.size_bytes:
        raise EOFError("the archive ends inside the entry")
    if zlib.crc32(data) != packed.crc32:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {packed.raw_name!r}")
    return data, packed.header_at + ahead


def _header_bytes(start: bytes, packed: ZipEntry) -> int:
    """Return the size of an entry's local header, after checking that it belongs to the entry."""
    magic, *_, name_bytes, extra_bytes = _HEADER.unpack_from(start)
    if magic != b"PK\3\4":
        raise zipfile.BadZipFile("Bad magic number for file header")
    name = start[_HEADER.size : _HEADER.size + name_bytes]
    if name != packed.raw_name.encode("latin-1"):
        raise zipfile.BadZipFile(f"File name in directory {packed.raw_name!r} and header {name!r} differ.")
    return int(_HEADER.size + name_bytes + extra_bytes)


def _decompress(archive: int, packed: ZipEntry, data_at: int, limit: int) -> bytes:
    info = zipfile.ZipInfo(packed.raw_name)
    info.compress_type, info.CRC = packed.method, packed.crc32
    info.compress_size, info.file_size = packed.packed_bytes, packed.size_bytes
    with zipfile.ZipExtFile(cast(IO[bytes], _OffsetReader(archive, data_at)), "r", info) as file:
        return file.read(limit)


class _OffsetReader:
    """Read a file from an offset without touching the position that other readers share."""

    def __init__(self, file: int, at: int) -> None:
        self._file = file
        self._at = at

    def read(self, size_bytes: int) -> bytes:
        data = os.pread(self._file, size_bytes, self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        """Leave the file open for its other readers."""
