"""Local cache of datasets: unpacks a committed dataset from object storage to a pack on local disk, once per machine.

Promises: shards are verified before a byte of them is decoded, and the dataset's digest is computed again from their images; of processes
that start together one builds the pack and the others wait; an incomplete or corrupt pack is rebuilt beside the old one, so that the memory
maps of other processes do not change. The first process after each boot verifies the pixels. Images are in the order of their keys, so a
pack is a function of the dataset's digest, not of its shards.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from components.errors import DataRefused
from components.manifests import DatasetManifest, Split
from components.storage import ObjectStore, StoreUri
from components.stores.dataset_content import Member, read_members
from components.stores.layout import StoreLayout
from components.system.disk import DiskFull, is_full, require_room
from components.system.locks import lock
from model.dataset import IMAGES_FILE, Pack, PackCorrupt, PackWriter, open_pack, verify_pack

_CHECKED_FILE = "checked"


def fetch_pack(
    manifest: DatasetManifest,
    store: ObjectStore,
    folder: Path,
    *,
    layout: StoreLayout,
    split: Split = "train",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pack:
    """Return the images of one `split` as a pack below `folder`, built from the shards if it does not exist.

    Raises:
        DataRefused: if a shard or the images do not have the digest in the manifest, or an image cannot be decoded.
        DiskFull: if shards and pack do not fit on the disk together.
    """
    target = folder / f"{manifest.digest[:16]}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f"{target.name}.lock"):
        try:
            pack = open_pack(target)
            if pack.dataset_digest == manifest.digest:
                _verify_once(pack, target)
                return pack
        except PackCorrupt:
            pass
        building = folder / f"{target.name}.building"
        try:
            shutil.rmtree(building, ignore_errors=True)
            require_room(folder, f"the dataset {manifest.digest[:12]}", _packed_bytes(manifest, split))
            _build(manifest, layout.locate(manifest.uri), store, building, split, on_progress)
            shutil.rmtree(target, ignore_errors=True)
            building.rename(target)
        except OSError as error:
            if is_full(error):
                raise DiskFull.of(folder, f"the dataset {manifest.digest[:12]}", needed_bytes=_packed_bytes(manifest, split)) from error
            raise DataRefused(
                f"the images cannot be unpacked to {target}: {error.strerror or error}",
                hint="set CELEBDIT_WORK_DIR to a folder that can be written",
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        pack = open_pack(target)
        _mark_verified(target)
    return pack


def _packed_bytes(manifest: DatasetManifest, split: Split) -> int:
    """Return the bytes of the pack of `split` and of the shards that it is made from."""
    images = manifest.num_images if split == "train" else manifest.num_held_out
    return images * 3 * manifest.image_px**2 + sum(shard.size_bytes for shard in manifest.shards)


def _verify_once(pack: Pack, target: Path) -> None:
    """Verify the pixels of `pack` unless that was done since the last boot and the file has not changed."""
    mark = target / _CHECKED_FILE
    if not mark.exists() or mark.read_text() != _state(target):
        verify_pack(pack)
        _mark_verified(target)


def _mark_verified(target: Path) -> None:
    (target / _CHECKED_FILE).write_text(_state(target))


def _state(target: Path) -> str:
    """Return a text that changes when the file of images was replaced or written to, or the machine was restarted."""
    status = (target / IMAGES_FILE).stat()
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {boot.read_text().strip() if boot.exists() else ''}"


def _build(
    manifest: DatasetManifest,
    location: StoreUri,
    store: ObjectStore,
    target: Path,
    split: Split,
    on_progress: Callable[[int, int], None],
) -> None:
    downloads = target.with_suffix(".shards")
    expected = manifest.num_images if split == "train" else manifest.num_held_out
    try:
        paths = []
        for shard in manifest.shards:
            paths.append(downloads / shard.name)
            store.get_file(location / shard.name, paths[-1], sha256=shard.sha256)
        members = [member for member in read_members(paths, manifest) if member.split == split]
        if len(members) != expected:
            raise DataRefused(f"{location} holds {len(members)} images of split {split}, expected {expected} by its manifest")
        side = manifest.image_px
        with PackWriter(target, shape=(side, side), keys=[member.key for member in members], dataset_digest=manifest.digest) as add:
            for done, member in enumerate(members, start=1):
                add(_decode(member, side_px=side))
                on_progress(done, len(members))
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _decode(member: Member, *, side_px: int) -> np.ndarray:
    with member.shard.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size_bytes)
    where = f"image {member.key} in {member.shard.name}"
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        pixels = np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataRefused(f"{where} cannot be decoded: {error}") from error
    if pixels.shape != (side_px, side_px, 3):
        raise DataRefused(f"{where} has shape {pixels.shape}, expected ({side_px}, {side_px}, 3)")
    return pixels
