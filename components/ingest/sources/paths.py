"""Sources on this machine: a folder of images or of archives, or a zip, tar or parquet file."""

from pathlib import Path
from urllib.parse import unquote

from components.address import split_url
from components.errors import BadInput
from components.ingest.candidates import Source
from components.ingest.sources.archives import open_archive
from components.ingest.sources.folders import open_folder
from components.ingest.sources.kinds import Reach, SourceKind

_HINT = "give the path of a zip, a tar, a parquet file or a folder of images"


def open_path(source: str, image_px: int, reach: Reach | None) -> Source:
    """Open a path, or a `file://` URI of this machine.

    Raises:
        BadInput: if it does not exist, cannot be read or is of an unknown kind. DataRefused: if it is damaged.
    """
    path = local_path(source)
    try:
        if not path.exists():
            raise BadInput(f"data.source {path} does not exist", hint=_HINT)
        if path.is_dir():
            return open_folder(path)
        if not path.is_file():  # opening it may wait for ever, and reading it may never end
            raise BadInput(
                f"data.source {path} is a device, pipe or socket",
                hint=_HINT,
            )
        return open_archive(path, str(path))
    except OSError as error:
        raise BadInput(f"data.source {path} cannot be read: {error.strerror}") from error


def local_path(source: str) -> Path:
    """Return the path that `source`, a path or a `file://` URI, names.

    Raises:
        BadInput: if the URI names another machine, or the path begins with the home of a user who has none.
    """
    if "://" not in source:
        try:
            return Path(source).expanduser()
        except RuntimeError as error:  # no such user, or one without a home
            raise BadInput(f"data.source {source} cannot be found: {error}", hint="give the full path") from error
    parts = split_url(source)
    if parts is None:
        raise BadInput(f"data.source {source} is not a URI", hint="give file:///path, or a plain path")
    if parts.netloc not in ("", "localhost"):
        raise BadInput(f"data.source {source} names another machine ({parts.netloc})", hint="give file:///path, or a plain path")
    return Path(unquote(parts.path))


KIND = SourceKind(("", "file"), "a path to a zip, tar, parquet file or folder", open_path, local_path=local_path)
