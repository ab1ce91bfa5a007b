"""The manifest of a registered version: size and sha256 of every file that belongs to it.

Promises: a folder passes `check` only if it holds exactly the files of the manifest, as plain files with their bytes; no link, no further
file, none missing. Nothing in the folder is imported or parsed. Imports neither MLflow nor `model`: a server of a version checks the files
before it loads either.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from components.errors import DataRefused

MANIFEST_FILE = "MANIFEST.json"
MAX_MANIFEST_BYTES = 4 * 2**20

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class VersionManifest(BaseModel):
    """Every file of a version but the manifest itself, by its path with slashes, and which weights the version is of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    checkpoint_digest: str
    ema: str
    files: dict[str, FileEntry]

    @classmethod
    def of_folder(cls, folder: Path, *, checkpoint_digest: str, ema: str) -> "VersionManifest":
        """Return the manifest of the files in `folder`.

        Raises:
            DataRefused: if one of them is not a plain file.
        """
        entries = {name: _entry(path) for name, path in _walk(folder, str(folder)) if name != MANIFEST_FILE}
        return cls(checkpoint_digest=checkpoint_digest, ema=ema, files=entries)

    @classmethod
    def parse(cls, data: bytes, *, sha256: str, what: str) -> "VersionManifest":
        """Read a manifest whose bytes must have the digest `sha256`; `what` names it in errors.

        Raises:
            DataRefused: if it has another digest, or is of another format.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataRefused(f"{what} is not the one that was registered (sha256 {sha256[:12]}...)", hint=_HINT)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DataRefused(
                f"{what} is not one that this version of celebdit can read: {error.errors()[0]['msg']}",
                hint="use the version of celebdit that registered it, or a newer one",
            ) from error

    def to_bytes(self) -> bytes:
        """Return it as canonical JSON, which is what its digest is of."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """The sha256 that names this content of a version."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def check_sizes(self, sizes: Mapping[str, int | None], what: str) -> None:
        """Compare a listing (path -> size, None if unknown) with this manifest; `what` names the version in errors.

        Raises:
            DataRefused: naming a file that is missing, was added or has another size.
        """
        expected = {name: entry.size_bytes for name, entry in self.files.items()} | {MANIFEST_FILE: len(self.to_bytes())}
        for problem, names in (("lacks", expected.keys() - sizes.keys()), ("has a file that was not registered:", sizes.keys() - expected)):
            if names:
                raise DataRefused(f"{what} {problem} {min(names)!r}{_more_text(len(names))}", hint=_HINT)
        for name in sorted(expected):
            if sizes[name] not in (None, expected[name]):
                raise DataRefused(f"{what}: {name!r} has {sizes[name]} bytes, {expected[name]} were registered", hint=_HINT)

    def check(self, folder: Path, what: str) -> None:
        """Check that `folder` holds exactly the registered files, byte for byte.

        Raises:
            DataRefused: naming a file that is missing, changed, was added, or is not a plain file.
        """
        paths = dict(_walk(folder, what))
        self.check_sizes({name: path.stat().st_size for name, path in paths.items()}, what)
        expected = {name: entry.sha256 for name, entry in self.files.items()} | {MANIFEST_FILE: self.digest}
        for name, path in sorted(paths.items()):
            if _entry(path).sha256 != expected[name]:
                raise DataRefused(f"{what}: {name!r} is not the file that was registered", hint=_HINT)


def check_folder(folder: Path, sha256: str) -> None:
    """Check a version's folder against the digest of its manifest, whose bytes are read from the folder.

    Raises:
        DataRefused: naming what differs.
    """
    what = f"the version in {folder}"
    path = folder / MANIFEST_FILE
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataRefused(f"{what}: {MANIFEST_FILE} is not a manifest", hint=_HINT)
        data = path.read_bytes()
    except OSError as error:
        raise DataRefused(f"{what} lacks {MANIFEST_FILE!r}: {error.strerror}", hint=_HINT) from error
    VersionManifest.parse(data, sha256=sha256, what=f"{what}: {MANIFEST_FILE!r}").check(folder, what)


_HINT = (
    "do not use it; check who can write to MLflow's artifact store, then delete the version in MLflow and run the pipeline again, which "
    "registers its checkpoint"
)


def _walk(folder: Path, what: str) -> Iterator[tuple[str, Path]]:
    """Yield path with slashes and path of every file below `folder`; empty folders have nothing that could be used."""
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "not a file"
                raise DataRefused(f"{what}: {path.relative_to(folder).as_posix()!r} is {kind}", hint=_HINT)
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix(), path


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=path.stat().st_size)


def _more_text(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""
