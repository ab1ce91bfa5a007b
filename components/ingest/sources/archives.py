"""Recognise zip and tar archives and parquet files.

Promises: a truncated archive gives another error than a file that is no archive, and a file of a well-known other kind is named
(`foreign_files.py`). `zips.py`, `tars.py` and `parquets.py` read them.
"""

import zipfile
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import Source
from components.ingest.sources.foreign_files import SPLIT_HINT, TAR_MAGIC, TAR_MAGIC_AT, refuse_foreign
from components.ingest.sources.parquets import ParquetSource, is_parquet
from components.ingest.sources.tars import TarSource, is_compressed, is_tar
from components.ingest.sources.zips import ZipSource

_HINT = "name a folder of images, a zip, a tar (plain, gz, bz2, xz) or a parquet file; unpack others first"
_TAR_BLOCK_BYTES = 512


def open_archive(path: Path, label: str) -> Source:
    """Open a zip or tar archive or a parquet file; `label` names it in errors.

    Raises:
        BadInput: if it is none of them, or holds no images. DataRefused: if it is corrupt.
    """
    try:
        refuse_foreign(path, label)
        if is_parquet(path):
            return ParquetSource(path, label)
        with path.open("rb") as file:  # `is_zipfile` returns False for a file that cannot be read
            head = file.read(_TAR_BLOCK_BYTES)
        begins_as_zip = head.startswith(b"PK\3\4")
        if not _begins_as_tar(head) and _is_zip(path, label):  # a tar may end with a zip, which then ends like one
            return ZipSource(path, label)
        if begins_as_zip or (path.suffix.lower() == ".zip" and not _begins_as_tar(head) and not is_compressed(head)):
            raise DataRefused(
                f"data.source {label} has no directory at its end: it is truncated or no zip, or the first part of a split one",
                hint=f"fetch it again; {SPLIT_HINT}",
            )
        if is_tar(path):
            _require_tar_entry(path, label)
            return TarSource(path, label)
    except PermissionError as error:
        raise BadInput(f"data.source {label} cannot be read: {error.strerror}") from error
    compressed = ", but something else that is compressed" if is_compressed(head) else ""
    raise BadInput(f"data.source {label} is neither a folder nor a zip or tar archive{compressed}", hint=_HINT)


def _begins_as_tar(head: bytes) -> bool:
    return head[TAR_MAGIC_AT:].startswith(TAR_MAGIC)


def _is_zip(path: Path, label: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # a zip64 directory that names several files
        raise DataRefused(f"data.source {label} is not a complete zip: {error}", hint=SPLIT_HINT) from error


def _require_tar_entry(path: Path, label: str) -> None:
    """Refuse an archive that begins with the mark of its end, before all of it is hashed: a sparse file may claim any size."""
    with path.open("rb") as file:
        header = file.read(_TAR_BLOCK_BYTES)
    if header and not any(header):
        raise DataRefused(f"data.source {label} is a tar archive without entries", hint="name an archive that contains images")
