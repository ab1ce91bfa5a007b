"""Where candidates come from: one interface over archives, folders and drawn faces, chosen by URI.

Promises: candidates are streamed, never unpacked to disk; names are only reported, never used as paths. Each source has a fingerprint that
changes with its content, by which a finished ingest is found again. Whether a candidate is a usable image is not decided here.
"""

import hashlib
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from components.errors import BadInput, DataRefused
from components.ingest.config import DataConfig
from components.ingest.synthetic import encode_face
from components.storage import file_sha256

_NEEDS_CONSENT = ("celeba",)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Candidate:
    """A file that may be an image: its name in the source and its bytes."""

    name: str
    data: bytes


class Source(Protocol):
    """A finite stream of candidates."""

    def fingerprint(self) -> str:
        """Return a digest that changes whenever the candidates do."""

    def count(self) -> int | None:
        """Return how many candidates there are, if that is cheap to know."""

    def candidates(self, *, max_bytes: int) -> Iterator[Candidate]:
        """Yield the candidates; of a file with more than `max_bytes`, one byte more than that is read."""


def open_source(config: DataConfig) -> Source:
    """Open what `config.source` names.

    Raises:
        BadInput: if it does not exist, cannot be read or is of no known kind.
    """
    parts = urlsplit(config.source)
    if parts.scheme == "synthetic":
        return _synthetic(parts.query, config.image_px)
    if parts.scheme in ("", "file"):
        return _local(Path(parts.path if parts.scheme else config.source).expanduser())
    raise BadInput(
        f"data.source has the unknown scheme {parts.scheme!r}",
        hint="give a path to a zip, tar or folder, or synthetic://?count=2000&seed=0",
    )


def require_consent(config: DataConfig) -> None:
    """Refuse to go on if the data's terms ask for somebody's consent and nobody gave it.

    Raises:
        BadInput: naming the licence and how to accept it.
    """
    if config.licence_accepted_by is None and any(word in config.licence.lower() for word in _NEEDS_CONSENT):
        raise BadInput(
            f"the licence {config.licence!r} must be accepted before its images are ingested",
            hint="read it, then set data.licence_accepted_by=NAME or pass --accept-license NAME",
        )


def _local(path: Path) -> Source:
    if not path.exists():
        raise BadInput(f"data.source {path} does not exist")
    try:
        if path.is_dir():
            return FolderSource(path)
        if zipfile.is_zipfile(path):
            return ZipSource(path)
        if tarfile.is_tarfile(path):
            return TarSource(path)
    except PermissionError as error:
        raise BadInput(f"data.source {path} cannot be read: {error.strerror}") from error
    raise BadInput(f"data.source {path} is neither a folder nor a zip or tar archive")


def _is_image_name(name: str) -> bool:
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base.lower().endswith(_IMAGE_SUFFIXES) and not base.startswith("._") and "__MACOSX" not in name


class FolderSource:
    """All image files below a folder, in the order of their paths. Symbolic links are not followed."""

    def __init__(self, root: Path) -> None:
        self._paths = sorted(p for p in root.rglob("*") if _is_image_name(p.name) and p.is_file() and not p.is_symlink())
        self._root = root
        if not self._paths:
            raise BadInput(
                f"data.source {root} contains no images",
                hint=f"files ending in {', '.join(_IMAGE_SUFFIXES)} are taken, also from subfolders",
            )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"folder")
        for path in self._paths:
            digest.update(f"{path.relative_to(self._root)}\0{file_sha256(path)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def count(self) -> int | None:
        return len(self._paths)

    def candidates(self, *, max_bytes: int) -> Iterator[Candidate]:
        for path in self._paths:
            with path.open("rb") as file:
                yield Candidate(str(path.relative_to(self._root)), file.read(max_bytes + 1))


class ZipSource:
    """The image entries of a zip file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as archive:
            self._entries = [entry for entry in archive.infolist() if not entry.is_dir() and _is_image_name(entry.filename)]
        if not self._entries:
            raise BadInput(
                f"data.source {path} contains no images", hint=f"entries ending in {', '.join(_IMAGE_SUFFIXES)} are taken, at any depth"
            )

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except (zipfile.BadZipFile, OSError) as error:
            raise BadInput(f"data.source {self._path} cannot be opened as a zip: {error}") from error

    def fingerprint(self) -> str:
        return file_sha256(self._path)

    def count(self) -> int | None:
        return len(self._entries)

    def candidates(self, *, max_bytes: int) -> Iterator[Candidate]:
        with self._opened() as archive:
            for entry in self._entries:
                try:
                    with archive.open(entry) as file:
                        data = file.read(max_bytes + 1)
                except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError):
                    data = b""
                yield Candidate(entry.filename, data)


class TarSource:
    """The regular image files of a tar archive, compressed or not, read once from front to back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fingerprint(self) -> str:
        return file_sha256(self._path)

    def count(self) -> int | None:
        return None

    def candidates(self, *, max_bytes: int) -> Iterator[Candidate]:
        try:
            with tarfile.open(self._path, "r|*") as archive:
                for entry in archive:
                    if entry.isfile() and _is_image_name(entry.name):
                        file = archive.extractfile(entry)
                        yield Candidate(entry.name, file.read(max_bytes + 1) if file else b"")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataRefused(f"data.source {self._path} is damaged: {error}") from error


@dataclass(frozen=True)
class SyntheticSource:
    """Drawn faces."""

    count_images: int
    seed: int
    image_px: int

    def fingerprint(self) -> str:
        return hashlib.sha256(f"synthetic 1 {self.count_images} {self.seed} {self.image_px}".encode()).hexdigest()

    def count(self) -> int | None:
        return self.count_images

    def candidates(self, *, max_bytes: int) -> Iterator[Candidate]:
        for index in range(self.count_images):
            yield Candidate(f"{index:05d}.jpg", encode_face(self.seed, index, self.image_px))


def _synthetic(query: str, image_px: int) -> SyntheticSource:
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    if unknown := sorted(set(given) - {"count", "seed", "size"}):
        raise BadInput(f"data.source synthetic:// does not know {', '.join(unknown)}", hint="write synthetic://?count=2000&seed=0&size=256")
    try:
        return SyntheticSource(
            count_images=int(given.get("count", "2000")), seed=int(given.get("seed", "0")), image_px=int(given.get("size", str(image_px)))
        )
    except ValueError as error:
        raise BadInput(f"data.source synthetic:// takes whole numbers: {error}") from error
