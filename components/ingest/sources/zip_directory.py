"""Read the central directory of a zip record by record.

Promises: one record is in memory at a time, however many there are; what Python's `zipfile` refuses to open is refused here too, and
records have the same meaning. The entries themselves are read in `zip_entry.py`.

The standard library's `ZipFile` is not used: it holds all records of an untrusted archive in memory.
"""

import os
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from components.ingest.zip_entry import ZipEntry

_RECORD = struct.Struct("<4s4B4H3I5H2I")
_ZIP64_END_BYTES = 56 + 20
_NEWEST_VERSION = 63
_NAME_IS_UTF8 = 0x800
_ZIP64_FIELD = 1
_IN_ZIP64 = 0xFFFFFFFF
_SIZE_IN_ZIP64 = (_IN_ZIP64, 2**64 - 1)
_WRAP_BYTES = 2**32
_LOCAL_BYTES = 30


class SplitZip(zipfile.BadZipFile):
    """The file is the last part of a zip in several files."""


class WrappedZip(zipfile.BadZipFile):
    """The zip is larger than its 32-bit offsets can say, and they cannot be made out."""


class Record(NamedTuple):
    """A record of the directory: `name` ends at the first zero byte of `whole_name`, `mode` is that of a Unix file or 0."""

    name: str
    whole_name: str
    mode: int
    flags: int
    packed: ZipEntry

    @property
    def is_dir(self) -> bool:
        """Whether the entry stands for a folder."""
        return self.name.endswith("/")


def directory(file: IO[bytes]) -> Iterator[Record]:
    """Yield the records of the zip `file`, in their order; nothing else may move the file's position during the iteration.

    Raises:
        zipfile.BadZipFile, NotImplementedError: if the directory is damaged. UnicodeDecodeError: if a name is flagged as UTF-8 and is not.
    """
    begins_at, size_bytes, shift = _extent(file)
    file.seek(begins_at)
    if shift > 0 and shift % _WRAP_BYTES == 0:
        yield from _unwrap(file, begins_at, _records(file, size_bytes, shift=0))
    else:
        yield from _records(file, size_bytes, shift)


def _unwrap(file: IO[bytes], begins_at: int, records: Iterator[Record]) -> Iterator[Record]:
    """Yield records of a zip over 4 GiB without zip64 fields with their full offsets: macOS writes the lower 32 bits alone.

    Its entries lie in the order of the directory, which begins at `begins_at`: each is at the first place after the one before where its
    header is.
    """
    at_least = 0
    for record in records:
        low = record.packed.header_at
        first = low + -(-max(at_least - low, 0) // _WRAP_BYTES) * _WRAP_BYTES
        header_at = next((at for at in range(first, begins_at, _WRAP_BYTES) if _is_header(file.fileno(), at, record)), None)
        if header_at is None:
            raise WrappedZip(f"it is larger than 4 GiB and has no zip64 fields, and {record.name!r} is not where it says")
        at_least = header_at + 1
        yield record._replace(packed=record.packed._replace(header_at=header_at))


def _is_header(archive: int, at: int, record: Record) -> bool:
    name = record.packed.raw_name.encode("latin-1")
    start = os.pread(archive, _LOCAL_BYTES + len(name), at)
    return start.startswith(b"PK\3\4") and start[_LOCAL_BYTES:] == name


def _records(file: IO[bytes], size_bytes: int, shift: int) -> Iterator[Record]:
    read_bytes = 0
    while read_bytes < size_bytes:
        head = file.read(_RECORD.size)
        if len(head) != _RECORD.size:
            raise zipfile.BadZipFile("Truncated central directory")
        fields = _RECORD.unpack(head)
        if fields[0] != b"PK\1\2":
            raise zipfile.BadZipFile("Bad magic number for central directory")
        name_bytes, extra_bytes, comment_bytes = fields[12:15]
        rest = file.read(name_bytes + extra_bytes + comment_bytes)
        yield _record(fields, rest[:name_bytes], rest[name_bytes : name_bytes + extra_bytes], shift)
        read_bytes += _RECORD.size + name_bytes + extra_bytes + comment_bytes


def has_more_records(file: IO[bytes], limit: int) -> bool:
    """Return whether the directory of the zip `file` has more than `limit` records; the zip's own count is not trusted."""
    begins_at, size_bytes, _ = _extent(file)
    file.seek(begins_at)
    number = read_bytes = 0
    while read_bytes < size_bytes and number <= limit and len(head := file.read(_RECORD.size)) == _RECORD.size:
        rest_bytes = sum(_RECORD.unpack(head)[12:15])
        file.seek(rest_bytes, 1)
        read_bytes += _RECORD.size + rest_bytes
        number += 1
    return number > limit


def _extent(file: IO[bytes]) -> tuple[int, int, int]:
    """Return the directory's offset and size, and the shift of all offsets in it if bytes precede the zip."""
    end_record = getattr(zipfile, "_EndRecData")(file)  # noqa: B009 - private, and the only reader of this record in the standard library
    if not end_record:
        raise zipfile.BadZipFile("File is not a zip file")
    if end_record[0] == b"PK\5\6" and (end_record[1] not in (0, 0xFFFF) or end_record[2] not in (0, 0xFFFF)):
        raise SplitZip(f"it is part {end_record[1] + 1} of a split zip")
    size_bytes, stated_at, end_at = end_record[5], end_record[6], end_record[9]
    if end_record[0] == b"PK\6\6":
        end_at -= _ZIP64_END_BYTES
    if end_at < size_bytes:
        raise zipfile.BadZipFile("Bad offset for central directory")
    return end_at - size_bytes, size_bytes, end_at - size_bytes - stated_at


def _record(fields: tuple[int, ...], raw_name: bytes, extra: bytes, shift: int) -> Record:
    needs_version, flags, method, crc32, packed_bytes, size_bytes = fields[3], fields[5], fields[6], *fields[9:12]
    external, header_at = fields[17:19]
    if needs_version > _NEWEST_VERSION:
        raise NotImplementedError(f"zip file version {needs_version / 10:.1f}")
    if extra:
        size_bytes, packed_bytes, header_at = _zip64(extra, size_bytes, packed_bytes, header_at)
    plain_name = raw_name.decode("latin-1")
    whole_name = plain_name if plain_name.isascii() else raw_name.decode("utf-8" if flags & _NAME_IS_UTF8 else "cp437")
    packed = ZipEntry(header_at + shift, packed_bytes, size_bytes, method, crc32, plain_name)
    return Record(whole_name.split("\0", 1)[0], whole_name, external >> 16, flags, packed)


def _zip64(extra: bytes, size_bytes: int, packed_bytes: int, header_at: int) -> tuple[int, int, int]:
    """Return sizes and position of an entry with those that do not fit into 32 bits taken from its extra field."""
    at = 0  # not by cutting the field shorter and shorter: one of many empty parts takes time in proportion to its square
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + length + 4 > len(extra):
            raise zipfile.BadZipFile(f"Corrupt extra field {kind:04x} (size={length})")
        if kind == _ZIP64_FIELD:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            try:
                size_bytes = next(values) if size_bytes in _SIZE_IN_ZIP64 else size_bytes
                packed_bytes = next(values) if packed_bytes == _IN_ZIP64 else packed_bytes
                header_at = next(values) if header_at == _IN_ZIP64 else header_at
            except StopIteration:
                raise zipfile.BadZipFile("Corrupt zip64 extra field") from None
        at += length + 4
    return size_bytes, packed_bytes, header_at
