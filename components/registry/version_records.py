"""Manifests of registered versions in object storage, where a writer of MLflow's artifact store or registry cannot change them.

Promises: a record is named by its own sha256, so that no other bytes are accepted under its name. It is written before the version exists,
and never again.
"""

from components.errors import DataRefused
from components.registry.version_manifest import MAX_MANIFEST_BYTES, VersionManifest
from components.storage import ObjectMissing, ObjectStore, StoreUri


class VersionRecords:
    """The records below one location."""

    def __init__(self, store: ObjectStore, folder: StoreUri) -> None:
        self._store = store
        self._folder = folder

    def put(self, manifest: VersionManifest) -> None:
        """Keep the manifest of a version."""
        self._store.put_bytes(self._uri_of(manifest.digest), manifest.to_bytes())

    def get(self, digest: str, what: str) -> VersionManifest:
        """Return the manifest with this digest; `what` names the version in errors.

        Raises:
            DataRefused: if there is none, or its bytes were changed.
        """
        uri = self._uri_of(digest)
        try:
            data = self._store.get_bytes(uri, max_bytes=MAX_MANIFEST_BYTES)
        except ObjectMissing as error:
            raise DataRefused(
                f"the record of {what}, {uri}, does not exist",
                hint="if it was registered with another CELEBDIT_STORE, set that one; else register its checkpoint again",
            ) from error
        return VersionManifest.parse(data, sha256=digest, what=f"the record of {what}, {uri},")

    def put_signature(self, digest: str, key_id: str, signature: bytes) -> None:
        """Keep the signature of a version by one key, beside its manifest."""
        self._store.put_bytes(self._folder / f"{digest}.{key_id}.sig", signature)

    def signature(self, digest: str, key_id: str) -> bytes | None:
        """Return the signature of a version by one key, or None. It is worth nothing until it is verified."""
        try:
            return self._store.get_bytes(self._folder / f"{digest}.{key_id}.sig", max_bytes=MAX_MANIFEST_BYTES)
        except ObjectMissing:
            return None

    def signing_keys(self, digest: str) -> list[str]:
        """Return the ids of the keys by which there are signatures of a version, right or wrong."""
        names = [item.uri.name for item in self._store.list(self._folder) if item.uri.name.startswith(f"{digest}.")]
        return sorted(name.split(".")[1] for name in names if name.endswith(".sig"))

    def _uri_of(self, digest: str) -> StoreUri:
        return self._folder / f"{digest}.json"
