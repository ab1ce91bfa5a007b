"""Reading a store without changing it: what the look-ups of a plan need, and the files of an embedded store that is not running."""

from pathlib import Path
from typing import Protocol

from components.errors import DataRefused
from components.storage.faults import ObjectMissing
from components.storage.uri import StoredObject, StoreUri

_MAX_BYTES = 64 * 2**20


class StoreReader(Protocol):
    """The part of `ObjectStore` that changes nothing."""

    def get_bytes(self, uri: StoreUri) -> bytes:
        """Return the object's bytes.

        Raises:
            ObjectMissing: if it does not exist. DataRefused: if it is too large.
        """

    def exists(self, uri: StoreUri) -> bool:
        """Return whether an object has exactly this key."""

    def list(self, prefix: StoreUri) -> list[StoredObject]:
        """Return all objects below `prefix`, sorted by key."""


class StoredFolder:
    """The objects of a server that keeps them as files below `folder`, by bucket and key; read without the server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_bytes(self, uri: StoreUri) -> bytes:
        """Return the object's bytes.

        Raises:
            ObjectMissing: if it does not exist. DataRefused: if it is too large.
        """
        path = self._path(uri)
        if not path.is_file():
            raise ObjectMissing(f"{uri} does not exist")
        if path.stat().st_size > _MAX_BYTES:
            raise DataRefused(f"{uri} has {path.stat().st_size} bytes, at most {_MAX_BYTES} are expected")
        return path.read_bytes()

    def exists(self, uri: StoreUri) -> bool:
        """Return whether an object has exactly this key."""
        return self._path(uri).is_file()

    def list(self, prefix: StoreUri) -> list[StoredObject]:
        """Return all objects below `prefix`, sorted by key."""
        bucket = self._folder / prefix.bucket
        files = (path for path in self._path(prefix).rglob("*") if path.is_file())
        objects = [StoredObject(StoreUri(prefix.bucket, path.relative_to(bucket).as_posix()), path.stat().st_size) for path in files]
        return sorted(objects, key=lambda item: item.uri.key)

    def _path(self, uri: StoreUri) -> Path:
        return self._folder / uri.bucket / uri.key
