"""The interface of a source of candidates, and what an entry's name alone decides.

Promises: names are labels: they are checked, escaped and reported; no path is ever made from one.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from components.errors import BadInput, DataRefused
from components.ingest.file_names import (
    ARCHIVE_SUFFIXES,
    BACKUP_SUFFIXES,
    FOLDER_ICON,
    FOUND_BY_CHECKS,
    IMAGE_SUFFIXES,
    LEFT_BY_PROGRAMS,
    LIBRARY_COPIES,
    LIBRARY_SUFFIXES,
    OF_FINDER,
    OTHER_SUFFIXES,
    PREVIEW_SUFFIXES,
    UNREAD_SUFFIXES,
)
from components.ingest.image_formats import READ_FORMATS, image_format
from components.ingest.limits import Budget
from components.ingest.verdicts import NO_IMAGE, Rejected
from components.ingest.zip_entry import ZipEntry

NAME_RULES = 4
"""Number of the rules below; an ingest under earlier ones is no reason to skip another."""
READ_HINT = f"{', '.join(READ_FORMATS)} are read at any depth, whatever their names (.jpg, .jfif, no suffix)"
_MAX_NAME_CHARACTERS = 400
_REMEMBERED_NAMES, _REMEMBERED_FOLDERS = 4, 64
"""Each name is asked for a few times in succession, and most files are in the folder of the one before."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")


class Candidate(NamedTuple):
    """A file that may be an image: its name in the source and its bytes, or the verdict on it if it was refused unread.

    A zip entry comes as `packed`, without its bytes: the worker that judges it reads them from `Source.archive_path()`, and decides with
    `by_content` whether it is an image at all.
    """

    name: str
    data: bytes
    refused: Rejected | None = None
    packed: ZipEntry | None = None
    by_content: bool = False


class Source(Protocol):
    """A finite stream of candidates."""

    def fingerprint(self) -> str:
        """Return a digest that changes whenever the candidates do."""

    def count(self) -> int | None:
        """Return how many candidates there are, if that is cheap to know."""

    def provenance(self) -> str:
        """Return the source as it is recorded in the manifest, with its version where it has one."""

    def archive_path(self) -> Path | None:
        """Return the archive that `packed` candidates lie in, downloaded first if necessary; it may be removed after the last candidate."""

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        """Yield the candidates; of a file with more than `max_image_bytes`, one byte more than that is read.

        Raises:
            DataRefused: if the source is corrupt, or exceeds the budget in total.
        """

    def require_unchanged(self) -> None:
        """Check, after the last candidate, that the candidates were those that the fingerprint is of.

        Raises:
            DataRefused: if the source changed between.
        """


def may_be_image(name: str) -> bool:
    """Return whether a file of this name, relative to its source, is read, or looked at."""
    return left_out_by_name(name) is None


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image unread; of others the first bytes decide (`image_formats.py`)."""
    return may_be_image(name) and _suffix(name) in IMAGE_SUFFIXES


def refused_by_content(name: str, head: bytes) -> Rejected | None:
    """Return the verdict on a file that neither its name nor its first bytes make an image, else None."""
    return None if _suffix(name) in IMAGE_SUFFIXES or image_format(head) is not None else NO_IMAGE


@lru_cache(_REMEMBERED_NAMES)
def left_out_by_name(name: str) -> Rejected | None:
    """Return the verdict on a file that is no data, or is in no format that is read, else None; `name` is relative to its source."""
    folder, _, base = name.replace("\\", "/").rpartition("/")
    if folder and (reason := _reason_of_folder(folder)) is not None:
        return Rejected("ignored", reason)
    if base.startswith(".") and not base.startswith(".."):
        return Rejected("ignored", "hidden")
    return _left_out_by_base(base)


def _left_out_by_base(base: str) -> Rejected | None:
    if base == FOLDER_ICON:
        return Rejected("ignored", "a folder's icon")
    suffix = _suffix(base)
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in UNREAD_SUFFIXES:
        return Rejected("unsupported_format", f"{UNREAD_SUFFIXES[suffix]} is not read; convert it to JPEG or PNG")
    if base.endswith(BACKUP_SUFFIXES) or (base.startswith("#") and base.endswith("#")):
        return Rejected("ignored", "a copy that a program kept of a file that it changed")
    if is_archive_name(base):
        return Rejected("nested_archive", "an archive inside the source is not opened: unpack it, or name it as the source")
    return Rejected("ignored", f"no image, but {suffix}") if suffix in OTHER_SUFFIXES else None


@lru_cache(_REMEMBERED_FOLDERS)
def _reason_of_folder(path: str) -> str | None:
    """Return why what is in a folder, or in one of those that it is in, is no data."""
    folders = path.split("/")
    for parent, folder in zip(("", *folders), folders, strict=False):
        if folder.startswith(".") and folder != ".":
            return f"in {folder}, a hidden folder"
        if folder.lower() == OF_FINDER:
            return f"in {folder}, which macOS adds to an archive"
        if _holds_copies(folder.lower(), parent.lower()):
            return f"in {folder}, a folder of thumbnails, deleted files or copies"
    return None


def _holds_copies(folder: str, parent: str) -> bool:
    """Return whether a program keeps no data but copies in a folder; names are in lower case."""
    if folder in LEFT_BY_PROGRAMS or folder.endswith(PREVIEW_SUFFIXES) or FOUND_BY_CHECKS.fullmatch(folder):
        return True
    return folder in LIBRARY_COPIES and (parent.endswith(LIBRARY_SUFFIXES) or parent == "iphoto library")


def refused_by_name(name: str) -> Rejected | None:
    """Return the verdict on a file or an entry that its name alone decides, else None; `name` is relative to its source."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[0][1:2] == ":" or _CONTROL_CHARACTER.search(name.removesuffix(FOLDER_ICON)):
        return Rejected("unsafe_name", "not a name below the archive")
    return left_out_by_name(name)


def left_out_image(name: str) -> tuple[str, str] | None:
    """Return the name of a file that is called like an image, and why it is left out; None for any other."""
    left_out = left_out_by_name(name) if _suffix(name) in IMAGE_SUFFIXES else None
    return None if left_out is None else (name, left_out.detail)


def no_images_but(source: str, left_out: tuple[str, str] | None) -> BadInput:
    """Return the error for a source without images, of which `left_out` is an example of what has been left out."""
    if left_out is None:
        return BadInput(f"{source} contains no images", hint=READ_HINT)
    name, reason = left_out
    return BadInput(
        f"{source} contains no images that are read: {printable_name(name)} is left out ({reason})",
        hint="if these are the images, name their folder as data.source, or rename it",
    )


def is_archive_name(name: str) -> bool:
    """Return whether a file is called like an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _suffix(name: str) -> str:
    base = name.replace("\\", "/").rpartition("/")[2]
    return f".{base.rpartition('.')[2]}".lower() if "." in base.lstrip(".") else ""


def printable_name(name: str) -> str:
    """Return `name` as text that can be stored and shown: unprintable characters escaped, too long a name truncated."""
    text = name.encode("utf-8", "backslashreplace").decode()
    if len(text) <= _MAX_NAME_CHARACTERS and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_MAX_NAME_CHARACTERS])


class Names:
    """The names seen so far, about a hundred bytes each, whatever their length."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_repeated(self, name: str) -> bool:
        """Return whether `name` was seen before."""
        mark = hash(name)
        known = mark in self._seen
        self._seen.add(mark)
        return known


def too_many_entries(label: str, budget: Budget) -> DataRefused:
    """Return the error for a source with more entries than `budget` allows."""
    return DataRefused(
        f"data.source {label} has more than {budget.max_entries} entries",
        hint="raise data.max_entries if the source is meant to be this large",
    )


def too_many_bytes(label: str, budget: Budget) -> DataRefused:
    """Return the error for a source that unpacks to more than `budget` allows."""
    return DataRefused(
        f"data.source {label} unpacks to more than {budget.max_total_bytes} bytes",
        hint="raise data.max_total_bytes if the source is meant to be this large",
    )
