"""Recognise zip and tar archives.

Promises: a truncated archive gives another error than a file that is no archive. `zips.py` and `tars.py` read them.
"""

import zipfile
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import Source
from components.ingest.sources.tars import TarSource, is_tar
from components.ingest.sources.zips import ZipSource

_TAR_BLOCK_BYTES = 512


def open_archive(path: Path, label: str) -> Source:
    """Open a zip or tar archive; `label` names it in errors.

    Raises:
        BadInput: if it is neither, or holds no images. DataRefused: if it is corrupt.
    """
    try:
        with path.open("rb") as file:  # `is_zipfile` returns False for a file that cannot be read
            begins_as_zip = file.read(4) == b"PK\3\4"
        if zipfile.is_zipfile(path):
            return ZipSource(path, label)
        if path.suffix.lower() == ".zip" or begins_as_zip:
            raise DataRefused(f"data.source {label} has no directory at its end: it is truncated or no zip", hint="fetch it again")
        if is_tar(path):
            _require_tar_entry(path, label)
            return TarSource(path, label)
    except PermissionError as error:
        raise BadInput(f"data.source {label} cannot be read: {error.strerror}") from error
    raise BadInput(f"data.source {label} is neither a folder nor a zip or tar archive")


def _require_tar_entry(path: Path, label: str) -> None:
    """Refuse an archive that begins with the mark of its end, before all of it is hashed: a sparse file may claim any size."""
    with path.open("rb") as file:
        header = file.read(_TAR_BLOCK_BYTES)
    if header and not any(header):
        raise DataRefused(f"data.source {label} is a tar archive without entries", hint="name an archive that contains images")
