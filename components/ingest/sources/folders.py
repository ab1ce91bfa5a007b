"""Images in a folder, at any depth.

Promises: symbolic links are not followed and nothing but a regular file is opened; every file gets a verdict. Files are read in the
order of their paths, so that the same folder is always read in the same order, and only as they were fingerprinted.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import IMAGE_SUFFIXES, Candidate, is_image_name, left_out_by_name
from components.ingest.limits import Budget
from components.ingest.sources.unchanged import FingerprintedFile, source_changed_error, state_of
from components.ingest.verdicts import Rejected

_SCANNED_FILES = 10**5
_MOST_IMAGE_BYTES = 2**30
"""The bound of data.max_image_bytes."""


class FolderSource:
    """All files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fingerprinted: dict[int, int] | None = None
        self._unjudged = 0
        if not any(is_image_name(_name(path, root)) for _, path in zip(range(_SCANNED_FILES), _walk(root), strict=False)):
            raise BadInput(
                f"data.source {root} contains no images",
                hint=f"files ending in {', '.join(IMAGE_SUFFIXES)} are taken, also from subfolders",
            )

    def fingerprint(self) -> str:
        digest, self._fingerprinted = hashlib.sha256(b"folder 2"), {}
        for path in _walk(self._root):
            content, mark = "-", _mark(path)
            if _regular(path) and is_image_name(_name(path, self._root)):
                try:
                    content, mark = _content(path, str(self._root))
                except OSError:
                    content = "unreadable"
            digest.update(os.fsencode(f"{path.relative_to(self._root)}\0{content}\n"))
            self._fingerprinted[hash(path)] = mark
        self._unjudged = len(self._fingerprinted)
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        if self._unjudged:
            raise source_changed_error(str(self._root), f"{self._unjudged} files are gone")

    def _require_fingerprinted(self, path: Path) -> None:
        """Raise DataRefused unless the file is the one that was fingerprinted, if there is a fingerprint."""
        if self._fingerprinted is None:
            return
        if self._fingerprinted.get(hash(path)) != _mark(path):
            raise source_changed_error(str(self._root), f"{path} is not the file that was hashed before")
        self._unjudged -= 1

    def count(self) -> int | None:
        return sum(is_image_name(path.name) for path in _walk(self._root))

    def provenance(self) -> str:
        return str(self._root)

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        total_bytes = 0
        for number, path in enumerate(_walk(self._root), start=1):
            candidate = _read(path, _name(path, self._root), budget.max_image_bytes)
            self._require_fingerprinted(path)
            total_bytes += len(candidate.data)
            if number > budget.max_entries or total_bytes > budget.max_total_bytes:
                excess = f"{budget.max_entries} files" if number > budget.max_entries else f"{budget.max_total_bytes} bytes"
                raise DataRefused(
                    f"data.source {self._root} has more than {excess}",
                    hint="raise data.max_entries or data.max_total_bytes if the source is meant to be this large",
                )
            yield candidate


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file below `root` that is not a folder, in the order of their paths."""
    for folder, folders, files in os.walk(root, followlinks=False):
        folders.sort()
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in sorted([*files, *linked]))


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _content(path: Path, label: str) -> tuple[str, int]:
    """Return what identifies a file's bytes, and its mark; those of a file that is rejected for its size are not read."""
    file, size_bytes = FingerprintedFile(path, label), path.stat().st_size
    if size_bytes > _MOST_IMAGE_BYTES:
        return f"{size_bytes} bytes", hash(file.state)
    return file.sha256(), hash(file.state)


def _mark(path: Path) -> int:
    """Return a number that changes when the file is replaced or written to; kept in place of its parts to save memory."""
    try:
        return hash(state_of(path.lstat()))
    except OSError:
        return 0


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _read(path: Path, name: str, max_bytes: int) -> Candidate:
    if path.is_symlink():
        return Candidate(name, b"", Rejected("link", "a symbolic link"))
    if (left_out := left_out_by_name(name)) is not None:
        return Candidate(name, b"", left_out)
    if not _regular(path):
        return Candidate(name, b"", Rejected("special_file", "a device, pipe or socket"))
    try:
        with path.open("rb") as file:
            return Candidate(name, file.read(max_bytes + 1))
    except OSError as error:
        return Candidate(name, b"", Rejected("unreadable", error.strerror or "cannot be read"))
