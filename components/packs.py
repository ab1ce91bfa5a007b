"""From a committed data set in object storage to a pack on local disk, once per machine.

Promises: shards are verified before a byte of them is decoded; processes that start together build the pack once and the others wait; a
torn pack is built again. Images are in the order of their keys, so a pack is a function of the data set's digest, not of its shards.
"""

import fcntl
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from components.errors import DataRefused
from components.manifests import DatasetManifest
from components.storage import ObjectStore, StoreUri
from model.dataset import Pack, PackTorn, PackWriter, open_pack

Split = Literal["train", "held_out"]


def fetch_pack(
    manifest: DatasetManifest,
    store: ObjectStore,
    folder: Path,
    *,
    split: Split = "train",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pack:
    """Return the images of one `split` as a pack below `folder`, building it from the shards if it is not there.

    Raises:
        DataRefused: if a shard is not what the manifest names, or an image in it cannot be decoded.
    """
    target = folder / f"{manifest.digest[:16]}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder / f"{target.name}.lock"):
        try:
            pack = open_pack(target)
            if pack.dataset_digest == manifest.digest:
                return pack
        except PackTorn:
            pass
        _build(manifest, store, target, split, on_progress)
    return open_pack(target)


def _build(manifest: DatasetManifest, store: ObjectStore, target: Path, split: Split, on_progress: Callable[[int, int], None]) -> None:
    downloads = target.with_suffix(".shards")
    expected = manifest.num_images if split == "train" else manifest.num_held_out
    try:
        paths = []
        for shard in manifest.shards:
            paths.append(downloads / shard.name)
            store.get_file(StoreUri.parse(manifest.uri) / shard.name, paths[-1], sha256=shard.sha256)
        members = sorted((key, path, offset, size) for path in paths for key, offset, size in _members(path, split))
        if len(members) != expected:
            raise DataRefused(f"{manifest.uri} holds {len(members)} images of split {split}, its manifest says {expected}")
        side = manifest.image_px
        with PackWriter(target, shape=(side, side), keys=[key for key, *_ in members], dataset_digest=manifest.digest) as add:
            for done, (key, path, offset, size) in enumerate(members, start=1):
                add(_decode(path, offset, size, key=key, side_px=side))
                on_progress(done, len(members))
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _members(path: Path, split: Split) -> list[tuple[str, int, int]]:
    """Return (key, offset, size) of the images of `split` in a shard; the facts of an image follow it."""
    found, image = [], None
    with tarfile.open(path, "r:") as archive:
        for entry in archive:
            if not entry.name.endswith(".json"):
                image = (entry.name.rsplit(".", 1)[0], entry.offset_data, entry.size)
                continue
            facts = archive.extractfile(entry)
            if image is None or facts is None:
                raise DataRefused(f"{path.name} is not a shard: {entry.name} has no image before it")
            if json.load(facts)["split"] == split:
                found.append(image)
    return found


def _decode(path: Path, offset: int, size: int, *, key: str, side_px: int) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        pixels = np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataRefused(f"image {key} in {path.name} cannot be decoded: {error}") from error
    if pixels.shape != (side_px, side_px, 3):
        raise DataRefused(f"image {key} in {path.name} has shape {pixels.shape}, expected ({side_px}, {side_px}, 3)")
    return pixels


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
