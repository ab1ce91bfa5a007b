"""The files of versions: stored once under the digest of their manifest, and opened only if all of them are those that were registered.

Promises: the digest of a version's manifest is a tag in the registry and the last part of the version's source, which no call of the
registry changes; the manifest itself is in object storage (`version_records.py`) and among the version's files. All must agree before
anything is read, and every file with the manifest before any is used; so neither a writer of the artifact store, nor one of the registry,
nor one of object storage can alone replace a file. Of a version without a manifest, registered before there were any, only weights and
description are fetched, never its code, and the weights must be those of its checkpoint as long as that is kept.
"""

import re
import shutil
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

from components.errors import BadInput, DataRefused
from components.registry.tags import VersionTags
from components.registry.version_artifacts import ModelVersion, VersionArtifacts
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE, ModelFiles, read_version_files
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest
from components.registry.version_records import VersionRecords
from components.registry.version_signatures import SignedVersion, VersionSignatures
from components.storage import ObjectMissing, ObjectStore, StoreUri, connect
from components.stores.layout import StoreLayout
from components.tracking.client import Tracking
from model.checkpoint_manifest import MANIFEST_FILE as CHECKPOINT_MANIFEST
from model.checkpoint_manifest import CheckpointInvalid, decode_manifest
from model.ema import EmaName

_ARTIFACTS = "artifacts"
_DIGEST = re.compile(r"(?<=/)[0-9a-f]{64}$")
_CHANGED = "its tags were changed: register its checkpoint again, and check who can write to the registry"


class VersionStore:
    """The files of all versions of an MLflow server."""

    def __init__(self, tracking: Tracking) -> None:
        self._settings = tracking.settings
        self._artifacts = VersionArtifacts(tracking)

    @cached_property
    def _objects(self) -> ObjectStore:
        # Connected on first use: a command that opens no version needs no object storage.
        return connect(self._settings.s3_endpoint, deadline_s=self._settings.storage_deadline_s)

    @property
    def _layout(self) -> StoreLayout:
        return StoreLayout(StoreUri.parse(self._settings.store_uri))

    @property
    def _records(self) -> VersionRecords:
        return VersionRecords(self._objects, self._layout.version_records)

    def put(self, folder: Path, *, model_id: str, checkpoint_digest: str, ema: str) -> tuple[str, str]:
        """Store the files in `folder` with their manifest, and the manifest's record; return the version's source and the digest."""
        manifest = VersionManifest.of_folder(folder, checkpoint_digest=checkpoint_digest, ema=ema)
        (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        source = self._artifacts.upload(folder, model_id=model_id, name=manifest.digest)
        self._records.put(manifest)
        return source, manifest.digest

    def check_present(self, version: ModelVersion) -> None:
        """Check that the files of a version are there, by their names and sizes.

        Raises:
            DataRefused: naming what is missing or was changed.
        """
        what = _name(version)
        manifest = self._manifest_of(version)
        if manifest is not None:
            folders = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents} - {"."}
            manifest.check_sizes(self._artifacts.sizes(version, folders), what)
            return
        present = self._artifacts.sizes(version, {_ARTIFACTS})
        for file in (WEIGHTS_FILE, DESCRIPTION_FILE):
            if f"{_ARTIFACTS}/{file}" not in present:
                raise DataRefused(f"{what} is not a model of celebdit: it has no {file}")

    def open(self, version: ModelVersion, folder: Path, *, verify_key: str | None = None) -> ModelFiles:
        """Return the files of a version below `folder`; they are downloaded unless they are there and intact.

        Raises:
            DataRefused: if it is not a model of this project, a file is not the one that was registered, or the signature by `verify_key`
                is missing or wrong. BadInput: if that key cannot be used.
        """
        if verify_key is None:
            return self._open(version, folder)
        signatures = VersionSignatures(self._records)
        key = signatures.public_key(Path(verify_key))  # before the download
        files = self._open(version, folder)
        signatures.check(files, key, _name(version))
        return files

    def sign(self, version: ModelVersion, folder: Path, key: Path) -> SignedVersion:
        """Sign the files of a version, which are verified first, and keep the signature beside the version's record."""
        signatures = VersionSignatures(self._records)
        private_key = signatures.private_key(key)
        return signatures.sign(self._open(version, folder), private_key, _name(version))

    def _open(self, version: ModelVersion, folder: Path) -> ModelFiles:
        manifest = self._manifest_of(version)
        digest = None if manifest is None else manifest.digest
        content = digest or VersionTags.from_mlflow(version.tags).checkpoint_digest or ""
        target = folder / f"{version.name}-{version.version}-{content[:16]}"
        here = self._whole_copy(target, version, manifest)
        if here is not None:
            return here
        self.check_present(version)
        partial = folder / f".{target.name}-{uuid.uuid4().hex[:8]}.partial"
        try:
            self._artifacts.download(version, partial, below="" if manifest else _ARTIFACTS)
            self._check_files(partial, version, manifest)
            if self._whole_copy(target, version, manifest) is None:  # no other process has just put it there, and may be reading it
                _replace(target, partial)
            return self._check_files(target, version, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _whole_copy(self, folder: Path, version: ModelVersion, manifest: VersionManifest | None) -> ModelFiles | None:
        """Return the files in `folder` if they are there and intact; a damaged copy is fetched again."""
        try:
            return self._check_files(folder, version, manifest) if folder.is_dir() else None
        except DataRefused:
            return None

    def _check_files(self, folder: Path, version: ModelVersion, manifest: VersionManifest | None) -> ModelFiles:
        """Return the files in `folder` after a comparison with the manifest, or without one with the checkpoint that they are from."""
        what = _name(version)
        if manifest is not None:
            manifest.check(folder, what)
            return read_version_files(folder, what, manifest.digest)
        files = read_version_files(folder, what, None)
        registered = self._weights_of_checkpoint(VersionTags.from_mlflow(version.tags))
        if registered not in (None, files.description.weights_sha256):
            raise DataRefused(
                f"the weights of {what} are not those of its checkpoint",
                hint="check who can write to MLflow's artifact store, delete the version in MLflow, and run the pipeline again",
            )
        return files

    def _weights_of_checkpoint(self, tags: VersionTags) -> str | None:
        """Return the sha256 of a version's weights by the manifest of its checkpoint, which its digest names; None if that is gone."""
        if tags.checkpoint_uri is None or tags.checkpoint_digest is None or tags.ema is None:
            return None
        try:
            raw = self._objects.get_bytes(self._layout.locate(tags.checkpoint_uri) / CHECKPOINT_MANIFEST, sha256=tags.checkpoint_digest)
            _, files = decode_manifest(raw)
            return files[EmaName(tags.ema).file].sha256
        except (ObjectMissing, BadInput):
            return None
        except (CheckpointInvalid, KeyError, ValueError) as error:
            raise DataRefused(f"checkpoint {tags.checkpoint_uri} does not describe the weights {tags.ema!r}: {error}") from error

    def _manifest_of(self, version: ModelVersion) -> VersionManifest | None:
        """Return the manifest that registry and object storage agree on, or None for a version that never had one."""
        tags, what = VersionTags.from_mlflow(version.tags), _name(version)
        placed = _DIGEST.search(str(version.source or ""))
        if placed is None and tags.manifest_digest is None:
            return None
        if placed is None or tags.manifest_digest != placed[0]:
            raise DataRefused(
                f"the registry's tag of {what} names the manifest {tags.manifest_digest!r}, it was registered with "
                f"{placed and placed[0]!r}",
                hint=_CHANGED,
            )
        manifest = self._records.get(placed[0], what)
        if not tags.is_of(manifest.checkpoint_digest, manifest.ema):
            raise DataRefused(
                f"the registry says that {what} is of checkpoint {tags.checkpoint_digest!r}, EMA {tags.ema!r}; it was registered as "
                f"{manifest.checkpoint_digest!r}, EMA {manifest.ema!r}",
                hint=_CHANGED,
            )
        return manifest


def _replace(target: Path, folder: Path) -> None:
    """Put `folder` at `target`, where a damaged copy may be."""
    aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}.damaged")
    with suppress(OSError):
        target.rename(aside)
    with suppress(OSError):  # another process was first
        folder.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _name(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name!r}"
