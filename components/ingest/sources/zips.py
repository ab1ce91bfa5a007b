"""Images in a zip archive, streamed.

Promises: an entry is never a path and never on disk; one record of the directory is in memory at a time; every entry gets a verdict. The
bytes of an entry are read by a worker (`zip_entry.py`).
"""

import stat
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import (
    Candidate,
    Names,
    is_archive_name,
    is_image_name,
    left_out_image,
    may_be_image,
    no_images_but,
    printable_name,
    refused_by_name,
    too_many_bytes,
    too_many_entries,
)
from components.ingest.limits import Budget
from components.ingest.sources.foreign_files import SPLIT_HINT
from components.ingest.sources.unchanged import FingerprintedFile
from components.ingest.sources.zip_directory import Record, SplitZip, WrappedZip, directory, has_more_records
from components.ingest.verdicts import Rejected

_RATIO_FROM_BYTES = 2**20
_ENCRYPTED, _PATCHED = 1, 0x20
_SCANNED_RECORDS = 10**5
_DAMAGED = (zipfile.BadZipFile, OSError, NotImplementedError, ValueError)


class ZipSource:
    """The entries of a zip file."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._file = FingerprintedFile(path, label)
        self._num_records, self._count = self._scan()

    def _scan(self) -> tuple[int | None, int | None]:
        """Return the number of records and images of a small archive; a large one is scanned only once, later."""
        images = number = 0
        inner: str | None = None
        left_out: tuple[str, str] | None = None
        for record in islice(self._records(), _SCANNED_RECORDS + 1):
            number += 1
            images += may_be_image(record.name) and not record.is_dir
            inner = record.name if is_archive_name(record.name) else inner
            left_out = left_out or left_out_image(record.name)
        if number > _SCANNED_RECORDS:
            return None, None
        if not images:
            raise _no_images(self._label, inner, left_out)
        return number, images

    def _records(self) -> Iterator[Record]:
        try:
            with self._path.open("rb") as file:
                yield from directory(file)
        except UnicodeDecodeError as error:
            raise DataRefused(
                f"data.source {self._label} has a name that is flagged as UTF-8 and is not",
                hint="create the archive again with another program",
            ) from error
        except SplitZip as error:
            raise DataRefused(f"data.source {self._label} is not a complete zip: {error}", hint=SPLIT_HINT) from error
        except WrappedZip as error:
            raise DataRefused(
                f"data.source {self._label} cannot be read: {error}", hint="pack it again with `zip` or `tar`, not in Finder"
            ) from error
        except _DAMAGED as error:
            raise DataRefused(f"data.source {self._label} cannot be opened as a zip: {error}", hint="fetch it again") from error

    def fingerprint(self) -> str:
        return self._file.sha256()

    def require_unchanged(self) -> None:
        self._file.require_unchanged()

    def count(self) -> int | None:
        return self._count

    def provenance(self) -> str:
        return self._label

    def archive_path(self) -> Path | None:
        return self._path

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        if self._has_more_records(budget.max_entries):
            raise too_many_entries(self._label, budget)
        names, total_bytes = Names(), 0
        for record in self._records():
            if record.is_dir:
                continue
            refused = _refusal(record, budget, seen=names.is_repeated(record.name))
            if refused is not None:
                yield Candidate(record.whole_name, b"", refused)
                continue
            total_bytes += min(record.packed.size_bytes, budget.max_image_bytes + 1)
            if total_bytes > budget.max_total_bytes:
                raise too_many_bytes(self._label, budget)
            yield Candidate(record.name, b"", packed=record.packed, by_content=not is_image_name(record.name))

    def _has_more_records(self, limit: int) -> bool:
        if self._num_records is not None:
            return self._num_records > limit
        with self._path.open("rb") as file:
            return has_more_records(file, limit)


def _no_images(label: str, inner: str | None, left_out: tuple[str, str] | None) -> BadInput:
    if inner is not None:
        return BadInput(
            f"data.source {label} contains no images, but the archive {printable_name(inner)}",
            hint="an archive in an archive is not opened: unpack the outer one, and name the inner one as data.source",
        )
    return no_images_but(f"data.source {label}", left_out)


def _refusal(record: Record, budget: Budget, *, seen: bool) -> Rejected | None:
    """Return the verdict on an entry that its directory record alone decides, else None."""
    kind = stat.S_IFMT(record.mode)
    if kind not in (0, stat.S_IFREG):
        return Rejected("link", "a symbolic link") if stat.S_ISLNK(kind) else Rejected("special_file", "a device, pipe or socket")
    by_name = Rejected("unsafe_name", "holds a zero byte") if "\0" in record.whole_name else refused_by_name(record.name)
    if by_name is not None:
        return by_name
    if seen:
        return Rejected("duplicate_name", "the archive has an earlier entry of this name")
    return _refused_packing(record, budget)


def _refused_packing(record: Record, budget: Budget) -> Rejected | None:
    packed = record.packed
    if record.flags & _ENCRYPTED:
        return Rejected("encrypted", "needs a password")
    if record.flags & _PATCHED:
        return Rejected("damaged_entry", "compressed patched data (flag bit 5)")
    if packed.size_bytes > _RATIO_FROM_BYTES and packed.size_bytes > budget.max_ratio * max(packed.packed_bytes, 1):
        return Rejected("compressed_too_far", f"{packed.packed_bytes} bytes unpack to {packed.size_bytes}")
    return None
