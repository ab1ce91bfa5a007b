"""What a source hands over, how much of it is read, and what can be said of an entry by its name alone.

Promises: names are labels. They are checked, made printable and reported; no path is ever made from one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.errors import DataRefused
from components.ingest.limits import Budget
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import Packed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_LONGEST_NAME = 400
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Candidate:
    """A file that may be an image: its name in the source and its bytes, or the verdict on it if it was refused unread.

    An entry of a zip comes `packed`, without its bytes: they are read from `Source.archive()` by whoever judges them.
    """

    name: str
    data: bytes
    refused: Rejected | None = None
    packed: Packed | None = None


class Source(Protocol):
    """A finite stream of candidates."""

    def fingerprint(self) -> str:
        """Return a digest that changes whenever the candidates do."""

    def count(self) -> int | None:
        """Return how many candidates there are, if that is cheap to know."""

    def described(self) -> str:
        """Return the source as it is recorded: with the version that was read, where it has one."""

    def archive(self) -> Path | None:
        """Return the file that packed candidates lie in, fetched if need be. It may be removed once the last candidate was taken."""

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        """Yield the candidates; of a file with more than `max_image_bytes`, one byte more than that is read.

        Raises:
            DataRefused: if the source is damaged, or goes over the budget as a whole.
        """


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken; what macOS leaves beside images is not."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("._") and "__MACOSX" not in name


def refused_by_name(name: str) -> Rejected | None:
    """Return the verdict on an entry whose name says enough, else None."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[0][1:2] == ":" or _CONTROL_CHARACTER.search(name):
        return Rejected("unsafe_name", "not a name below the archive")
    if name.lower().endswith(_ARCHIVE_SUFFIXES):
        return Rejected("nested_archive", "archives inside archives are not opened")
    if not is_image_name(name):
        return Rejected("ignored", "not the name of an image")
    return None


def printable_name(name: str) -> str:
    """Return `name` as text that can be stored and shown: what is not printable is escaped, what is too long is cut."""
    text = name.encode("utf-8", "backslashreplace").decode()
    if len(text) <= _LONGEST_NAME and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST_NAME])


class Names:
    """Which names were seen, at a hundred bytes or so each, however long they are."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def again(self, name: str) -> bool:
        """Return whether `name` was seen before."""
        mark = hash(name)
        known = mark in self._seen
        self._seen.add(mark)
        return known


def too_many_entries(named: str, budget: Budget) -> DataRefused:
    """Return the error for a source with more entries than `budget` allows."""
    return DataRefused(f"data.source {named} has more than {budget.max_entries} entries", hint="raise data.max_entries if it is meant")


def too_many_bytes(named: str, budget: Budget) -> DataRefused:
    """Return the error for a source that unpacks to more than `budget` allows."""
    return DataRefused(
        f"data.source {named} unpacks to more than {budget.max_total_bytes} bytes", hint="raise data.max_total_bytes if it is meant"
    )
