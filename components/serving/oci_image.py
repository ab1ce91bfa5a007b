"""Writes a registered version as an OCI image in ModelCar's layout: one layer with the version's files below /models.

Promises: the same files give the same bytes, and so the same digests; every file is compared with the manifest while it is written, so that
what is packaged is what was registered. Needs no daemon and no network; `oci_registry.py` uploads images.

An image of the version alone holds no program. That is enough where it is mounted or unpacked (volumes of type `image`, KServe's
`oci+native://` and `oci+fetch://`). KServe's `oci://` starts the image as a container with `sh`, `ln` and `sleep`: there it needs a base.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components.errors import BadInput, DataRefused, shorten
from components.registry.version_files import ModelFiles
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest
from components.serving.oci_base import LAYER_TYPE, PLATFORM, BaseImage
from components.storage import file_sha256

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_FOLDER = "models"


@dataclass(frozen=True)
class OciImage:
    """An image: its manifest, its configuration and its own layer."""

    manifest: bytes
    config: bytes
    layer: Path
    layer_digest: str
    base: BaseImage | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest by which the image is pulled."""
        return digest_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        return self.layer.stat().st_size


def digest_of(data: bytes) -> str:
    """Return the digest of a blob as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_image(files: ModelFiles, layer: Path, annotations: Mapping[str, str], base: BaseImage | None = None) -> OciImage:
    """Write the layer of a version to the file `layer` and return the image.

    Raises:
        DataRefused: if a file is not the one that was registered. BadInput: if there is no room.
    """
    assert files.manifest_sha256 is not None, "only a version with a manifest is packaged"
    with _open_file(files.folder, MANIFEST_FILE) as file:
        data = file.read()
    manifest = VersionManifest.parse(data, sha256=files.manifest_sha256, what=f"the manifest in {files.folder}")
    try:
        digest = _write_layer(manifest, files.folder, layer)
    except OSError as error:
        raise BadInput(f"{layer} cannot be written: {error.strerror}", hint="free space there, or set CELEBDIT_WORK_DIR") from error
    config = _config(digest, base)
    own = {"mediaType": LAYER_TYPE, "digest": digest, "size": layer.stat().st_size}
    layers = [*(base.layers if base else ()), own]
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
        "layers": layers,
        "annotations": dict(annotations),
    }
    return OciImage(_json(content), config, layer, digest, base, annotations)


def write_layout(image: OciImage, folder: Path, *, tag: str) -> bool:
    """Write an image without a base as an OCI layout into `folder`; it is complete once it has an index.

    Return whether that was done: an intact layout of the same image and tag is left as it is, so that a command whose push failed can be
    run again. Nothing is left of a layout that could not be written.

    Raises:
        BadInput: if there is anything else in the folder, or no room.
    """
    assert image.base is None, "the layers of a base are in its registry"
    try:
        if _holds_layout(image, folder, tag):
            return False
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"--out {folder} is not an empty folder", hint="name a folder that does not exist yet")
        existed = folder.exists()
        (folder / "blobs" / "sha256").mkdir(parents=True)  # where two write at once, the second ends here
    except OSError as error:
        raise _unwritable_error(folder, error) from error
    try:
        _write_layout(image, folder, tag)
    except BaseException as error:
        _remove_layout(folder, keeps_folder=existed)
        if isinstance(error, OSError):
            raise _unwritable_error(folder, error) from error
        raise
    return True


def _holds_layout(image: OciImage, folder: Path, tag: str) -> bool:
    blobs = folder / "blobs" / "sha256"
    with suppress(OSError):
        has_index = (folder / "index.json").read_bytes() == _index(image, tag)
        return has_index and all(file_sha256(blobs / _name(digest)) == _name(digest) for digest in _digests(image))
    return False


def _digests(image: OciImage) -> tuple[str, str, str]:
    return image.layer_digest, digest_of(image.config), image.digest


def _unwritable_error(folder: Path, error: OSError) -> BadInput:
    return BadInput(f"--out {shorten(str(folder))} cannot be written: {error.strerror}", hint="name a folder on a disk with room")


def _remove_layout(folder: Path, *, keeps_folder: bool) -> None:
    """Remove what `_write_layout` wrote before it failed, so that the command can be run again."""
    for name in ("index.json", "oci-layout"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "blobs", ignore_errors=True)
    if not keeps_folder:
        with suppress(OSError):  # another program has put a file there
            folder.rmdir()


def _write_layout(image: OciImage, folder: Path, tag: str) -> None:
    blobs = folder / "blobs" / "sha256"
    shutil.copyfile(image.layer, blobs / _name(image.layer_digest))
    for data in (image.config, image.manifest):
        (blobs / _name(digest_of(data))).write_bytes(data)
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(_index(image, tag))


def _index(image: OciImage, tag: str) -> bytes:
    entry = {
        "mediaType": MANIFEST_TYPE,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    return _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})


def _write_layer(manifest: VersionManifest, folder: Path, target: Path) -> str:
    expected = {name: entry.sha256 for name, entry in manifest.files.items()} | {MANIFEST_FILE: manifest.digest}
    # Of the formats that Python writes, PAX alone holds any name; the bytes follow from the entries alone.
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as layer:
        for name in _folders(expected):
            layer.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        for name in sorted(expected):
            with _open_file(folder, name) as file:
                entry = _entry(f"{_FOLDER}/{name}", tarfile.REGTYPE, 0o644)
                entry.size = os.fstat(file.fileno()).st_size
                content = _HashingReader(file)
                layer.addfile(entry, content)
            if content.hexdigest != expected[name]:
                raise DataRefused(f"{name!r} in {folder} is not the file that was registered", hint="run the command again")
    return f"sha256:{file_sha256(target)}"


def _open_file(folder: Path, name: str) -> IO[bytes]:
    try:
        return (folder / name).open("rb")
    except OSError as error:  # another process has deleted the files since they were verified
        raise DataRefused(f"{name!r} in {folder} cannot be read: {error.strerror}", hint="run the command again") from error


def _folders(names: Mapping[str, str]) -> list[str]:
    parents = {str(parent) for name in names for parent in PurePosixPath(_FOLDER, name).parents}
    return sorted(parents - {"."})


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, 0
    return entry


def _config(layer_digest: str, base: BaseImage | None) -> bytes:
    inherited: dict[str, Any] = (
        dict(base.config) if base else {**PLATFORM, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []}
    )
    layers = [*inherited["rootfs"]["diff_ids"], layer_digest]
    history = [*inherited.get("history", []), {"created_by": "celebdit models package"}]
    return _json({**inherited, "rootfs": {"type": "layers", "diff_ids": layers}, "history": history})


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _name(digest: str) -> str:
    return digest.partition(":")[2]


class _HashingReader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def blobs_of(image: OciImage) -> Iterator[tuple[str, IO[bytes], int]]:
    """Yield digest, bytes and size of each blob that an upload needs, the configuration last."""
    with image.layer.open("rb") as file:
        yield image.layer_digest, file, image.size_bytes
    yield digest_of(image.config), BytesIO(image.config), len(image.config)
