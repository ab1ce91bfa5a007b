"""Images in a tar archive, compressed or not, read once from front to back.

Promises: an entry is never a path and never on disk; the decompressed size is bounded; headers that claim gigabytes are refused; a
truncated archive is refused completely, because nothing in it shows what is missing.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from components.errors import DataRefused
from components.ingest.candidates import Candidate, Names, refused_by_name, too_many_bytes, too_many_entries
from components.ingest.limits import Budget
from components.ingest.verdicts import Rejected
from components.storage import file_sha256

_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)
_RATIO_FROM_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 2**20
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, by its name or by its first header."""
    if path.name.lower().endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")):
        return True
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGED:
        return False


class TarSource:
    """The entries of a tar archive, compressed or not, read once from front to back."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label

    def fingerprint(self) -> str:
        return file_sha256(self._path)

    def count(self) -> int | None:
        return None

    def provenance(self) -> str:
        return self._label

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        names = Names()
        try:
            with self._path.open("rb") as raw, _decompress(raw) as unpacked:
                metered = _BudgetedStream(unpacked, raw, budget, self._label)
                with tarfile.open(fileobj=cast(IO[bytes], metered), mode="r|", tarinfo=_StrictTarInfo) as archive:
                    for number, entry in enumerate(archive, start=1):
                        # Python 3.11 keeps every header that it read, even of a stream.
                        archive.members = []  # type: ignore[attr-defined]
                        if number > budget.max_entries:
                            raise too_many_entries(self._label, budget)
                        if not entry.isdir():
                            yield _read(archive, entry, budget.max_image_bytes, seen=names.is_repeated(entry.name))
        except _DAMAGED as error:
            raise DataRefused(f"data.source {self._label} is corrupt: {error}", hint="fetch or pack it again") from error


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo, max_bytes: int, *, seen: bool) -> Candidate:
    refused = None
    if entry.issym() or entry.islnk():
        refused = Rejected("link", f"a {'symbolic' if entry.issym() else 'hard'} link")
    elif not entry.isreg() or entry.issparse():
        refused = Rejected("special_file", "a device, pipe or sparse file")
    else:
        refused = refused_by_name(entry.name)
    if refused is None and seen:
        refused = Rejected("duplicate_name", "the archive has an entry of this name already")
    if refused is not None:
        return Candidate(entry.name, b"", refused)
    file = archive.extractfile(entry)
    assert file is not None, "a regular entry has bytes"
    return Candidate(entry.name, file.read(max_bytes + 1))


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses what `tarfile` accepts silently: headers that claim gigabytes, and a truncated archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise TarRefused("it ends early") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise TarRefused(f"a header is broken ({error})") from error

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        long_header = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if long_header and self.size > _MAX_HEADER_BYTES:
            raise TarRefused(f"a header claims {self.size} bytes")
        return super()._proc_member(tarfile_)  # type: ignore[misc]


class TarRefused(ValueError):
    """Raised by `_StrictTarInfo`; not an error of `tarfile`, which would treat that as the end of the archive."""


class _BudgetedStream:
    """A stream that raises beyond the budget."""

    def __init__(self, stream: IO[bytes], raw: IO[bytes], budget: Budget, label: str) -> None:
        self._stream = stream
        self._raw = raw
        self._budget = budget
        self._label = label
        self._read_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._read_bytes += len(data)
        if self._read_bytes > self._budget.max_total_bytes:
            raise too_many_bytes(self._label, self._budget)
        if self._read_bytes > _RATIO_FROM_BYTES and self._read_bytes > self._budget.max_ratio * self._raw.tell():
            raise DataRefused(
                f"data.source {self._label} unpacks to more than {self._budget.max_ratio:g} times its size",
                hint="no archive of photographs compresses so well; raise data.max_ratio if this one does",
            )
        return data


def _decompress(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(6)
    raw.seek(0)
    openers: dict[bytes, Any] = _COMPRESSED
    for magic, opened in openers.items():
        if start.startswith(magic):
            return cast(IO[bytes], opened(raw))
    return raw
