"""The interface of a source of candidates, and what an entry's name alone decides.

Promises: names are labels: they are checked, escaped and reported; no path is ever made from one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.errors import DataRefused
from components.ingest.limits import Budget
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import ZipEntry

NAME_RULES = 2
"""Number of the rules below; an ingest under earlier ones is no reason to skip another."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_OTHER_IMAGE_SUFFIXES = (".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi")
_LEFT_BY_PROGRAMS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "lost+found",
        "system volume information",
    }
)
"""Folders of thumbnails, deleted files and copies, in lower case; those whose name begins with a dot are left out too."""
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_MAX_NAME_CHARACTERS = 400
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Candidate:
    """A file that may be an image: its name in the source and its bytes, or the verdict on it if it was refused unread.

    A zip entry comes as `packed`, without its bytes: the worker that judges it reads them from `Source.archive_path()`.
    """

    name: str
    data: bytes
    refused: Rejected | None = None
    packed: ZipEntry | None = None


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


def is_image_name(name: str) -> bool:
    """Return whether a file of this name, relative to its source, is read as an image."""
    return left_out_by_name(name) is None


def left_out_by_name(name: str) -> Rejected | None:
    """Return the verdict on a file that is no data, or is in no format that is read, else None; `name` is relative to its source."""
    *folders, base = name.replace("\\", "/").split("/")
    if base.startswith(".") and not base.startswith(".."):
        return Rejected("ignored", "hidden")
    for folder in folders:
        if (folder.startswith(".") and folder != ".") or folder.lower() in _LEFT_BY_PROGRAMS:
            return Rejected("ignored", "in a folder of thumbnails, deleted files or copies")
    lower = base.lower()
    if lower.endswith(_OTHER_IMAGE_SUFFIXES):
        return Rejected("unsupported_format", f"{lower.rpartition('.')[2]} is not read; convert it to JPEG or PNG")
    return None if lower.endswith(IMAGE_SUFFIXES) else Rejected("ignored", "no image suffix")


def refused_by_name(name: str) -> Rejected | None:
    """Return the verdict on an entry that its name alone decides, else None."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[0][1:2] == ":" or _CONTROL_CHARACTER.search(name):
        return Rejected("unsafe_name", "not a name below the archive")
    left_out = left_out_by_name(name)
    if left_out is not None and name.lower().endswith(_ARCHIVE_SUFFIXES):
        return Rejected("nested_archive", "archives inside archives are not opened")
    return left_out


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
