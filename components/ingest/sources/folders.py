"""Images in a folder, at any depth.

Promises: symbolic links are followed only to files inside the folder (`links.py`) and nothing but a regular file is opened; every file gets
a verdict, and a folder inside that cannot be listed is an error, because its images would be missing. Files are read in the order of their
paths, so that the same folder is always read in the same order, and only as they were fingerprinted.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import (
    Candidate,
    Source,
    is_archive_name,
    is_image_name,
    left_out_by_name,
    left_out_image,
    may_be_image,
    no_images_but,
    refused_by_content,
)
from components.ingest.image_formats import HEAD_BYTES
from components.ingest.limits import Budget
from components.ingest.sources.archives import open_archive
from components.ingest.sources.links import snapshot_of, target_of
from components.ingest.sources.series import Part, SeriesSource, part_names
from components.ingest.sources.streamed import StreamedSource
from components.ingest.sources.unchanged import FingerprintedFile, source_changed_error, state_of
from components.ingest.verdicts import Rejected

_SCANNED_FILES = 10**5
_MOST_FILES = 10**6
_MOST_IMAGE_BYTES = 2**30
"""The bound of data.max_image_bytes."""
_LINK_HINT = "copy the folder with `cp -rL`, which copies what links lead to"
_RIGHTS_HINT = "let this user read it, or name a folder that can be read completely"
_LINK_AWAY = Rejected("link", "a link that leaves the source or leads to a folder: copy with `cp -rL`")
_LINK_BROKEN = Rejected("link", "a link to nothing, or to itself: fetch what it stands for")
_SPECIAL = Rejected("special_file", "a device, pipe or socket")


def open_folder(folder: Path) -> Source:
    """Open a folder of images, or of tars or parquet files with images.

    Raises:
        BadInput: if it has none.
    """
    read, root = snapshot_of(folder)
    files = {_name(path, read): path for path in islice(_walk(read), _MOST_FILES)}
    parts = part_names((name, _size_bytes(path, root)) for name, path in files.items())
    if not parts:
        return FolderSource(read, label=str(folder), root=root)
    opened = [Part(name, open_archive(_follow_link(files[name], root), f"{folder}/{name}")) for name in parts]
    return SeriesSource(str(folder), opened, beside=sorted(files.keys() - set(parts)))


class FolderSource(StreamedSource):
    """All files below a folder; `root` is where links may lead, by default the folder itself."""

    def __init__(self, folder: Path, *, label: str | None = None, root: Path | None = None) -> None:
        super().__init__(label or str(folder))
        self._folder = folder
        self._root = (root or folder).resolve()
        self._fingerprinted: dict[int, int] | None = None
        self._unjudged = 0
        self._num_images: int | None = None
        if not any(self._is_data(path) for path in islice(_walk(folder), _SCANNED_FILES)):
            raise self._no_images()

    def fingerprint(self) -> str:
        digest, self._fingerprinted, self._num_images = hashlib.sha256(b"folder 2"), {}, 0
        for path in _walk(self._folder):
            followed = _follow_link(path, self._root)
            content, mark = "-", _mark(followed)
            if self._is_data(path):
                self._num_images += 1
                try:
                    content, mark = _content(followed, self._label)
                except OSError:
                    content = "unreadable"
            digest.update(os.fsencode(f"{path.relative_to(self._folder)}\0{content}\n"))
            self._fingerprinted[hash(path)] = mark
        self._unjudged = len(self._fingerprinted)
        return digest.hexdigest()

    def _is_data(self, path: Path) -> bool:
        """Return whether a file is judged by its content: its name or its first bytes are those of an image."""
        name = _name(path, self._folder)
        followed = _follow_link(path, self._root)
        if not (may_be_image(name) and _is_regular(followed)):
            return False
        try:
            return is_image_name(name) or refused_by_content(name, _head(followed)) is None
        except OSError:
            return False

    def require_unchanged(self) -> None:
        if self._unjudged:
            raise source_changed_error(self._label, f"{self._unjudged} files are gone")

    def _require_fingerprinted(self, path: Path) -> None:
        """Raise DataRefused unless the file is the one that was fingerprinted, if there is a fingerprint."""
        if self._fingerprinted is None:
            return
        if self._fingerprinted.get(hash(path)) != _mark(_follow_link(path, self._root)):
            raise source_changed_error(self._label, f"{path} is not the file that was hashed before")
        self._unjudged -= 1

    def count(self) -> int | None:
        if self._num_images is None:
            self._num_images = sum(map(self._is_data, _walk(self._folder)))
        return self._num_images

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        total_bytes = 0
        for number, path in enumerate(_walk(self._folder), start=1):
            candidate = _read(path, _name(path, self._folder), self._root, budget.max_image_bytes)
            self._require_fingerprinted(path)
            total_bytes += len(candidate.data)
            if number > budget.max_entries or total_bytes > budget.max_total_bytes:
                excess = f"{budget.max_entries} files" if number > budget.max_entries else f"{budget.max_total_bytes} bytes"
                raise DataRefused(
                    f"data.source {self._label} has more than {excess}",
                    hint="raise data.max_entries or data.max_total_bytes if the source is meant to be this large",
                )
            yield candidate

    def _no_images(self) -> BadInput:
        message, left_out = f"data.source {self._label} contains no images", None
        for path in islice(_walk(self._folder), _SCANNED_FILES):
            if is_archive_name(path.name):
                return BadInput(f"{message}, but the archive {path.name}", hint="unpack it, or name it as data.source")
            if _is_link(path) and may_be_image(_name(path, self._folder)):
                return BadInput(f"{message}, but links that are not followed, like {path.name}", hint=_LINK_HINT)
            left_out = left_out or left_out_image(_name(path, self._folder))
        return no_images_but(f"data.source {self._label}", left_out)


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file below `root` that is not a folder, in the order of their paths; then folders that are no data and cannot be listed.

    Raises:
        BadInput: if another folder cannot be listed.
    """
    unlisted: list[Path] = []

    def note(error: OSError) -> None:
        path = Path(error.filename)
        if path == root or left_out_by_name(f"{_name(path, root)}/") is None:
            raise BadInput(f"data.source {root} cannot be read completely: {path}: {error.strerror}", hint=_RIGHTS_HINT) from error
        unlisted.append(path)

    for folder, folders, files in os.walk(root, followlinks=False, onerror=note):
        folders.sort()
        linked = [name for name in folders if _is_link(Path(folder, name))]
        yield from (Path(folder, name) for name in sorted([*files, *linked]))
    yield from unlisted


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _follow_link(path: Path, root: Path) -> Path:
    """Return the file inside `root` that a link leads to, or the path itself."""
    return (target_of(path, root) or path) if _is_link(path) else path


def _is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link; False if nothing can be said, where `Path.is_symlink` may raise."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError:
        return False


def _size_bytes(path: Path, root: Path) -> int:
    try:
        status = _follow_link(path, root).lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


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


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _read(path: Path, name: str, root: Path, max_bytes: int) -> Candidate:
    if (left_out := left_out_by_name(name)) is not None:
        return Candidate(name, b"", left_out)
    followed = _follow_link(path, root)
    try:
        if (refused := _refused_kind(followed, name)) is not None:
            return Candidate(name, b"", refused)
        with followed.open("rb") as file:
            head = file.read(HEAD_BYTES)
            refused = refused_by_content(name, head)
            return Candidate(name, b"" if refused else head + file.read(max_bytes + 1 - len(head)), refused)
    except OSError as error:
        return Candidate(name, b"", Rejected("unreadable", error.strerror or "cannot be read"))


def _refused_kind(path: Path, name: str) -> Rejected | None:
    """Return the verdict on what is no regular file; a link here is one that is not followed."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return _LINK_AWAY if path.exists() else _LINK_BROKEN
    if stat.S_ISDIR(mode):
        return left_out_by_name(f"{name}/")
    return None if stat.S_ISREG(mode) else _SPECIAL
