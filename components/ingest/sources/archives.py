"""Which kind of archive a file is.

Promises: a file that was cut off is told from one that never was an archive. Reading is the business of `zips.py` and `tars.py`.
"""

import zipfile
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import Source
from components.ingest.sources.tars import TarSource, is_tar
from components.ingest.sources.zips import ZipSource


def open_archive(path: Path, named: str) -> Source:
    """Open a zip or tar archive; `named` is what errors call it.

    Raises:
        BadInput: if it is neither, or holds no images. DataRefused: if it is damaged.
    """
    try:
        with path.open("rb") as file:  # `is_zipfile` would take a file that cannot be read for no zip
            begins_as_zip = file.read(4) == b"PK\3\4"
        if zipfile.is_zipfile(path):
            return ZipSource(path, named)
        if path.suffix.lower() == ".zip" or begins_as_zip:
            raise DataRefused(f"data.source {named} has no directory at its end: it is cut off or no zip", hint="fetch it again")
        if is_tar(path):
            return TarSource(path, named)
    except PermissionError as error:
        raise BadInput(f"data.source {named} cannot be read: {error.strerror}") from error
    raise BadInput(f"data.source {named} is neither a folder nor a zip or tar archive")
