"""The packed dataset: training images as one memory map, and the images of each step.

A pack is a directory with `images.npy`, uint8 of shape (n, h, w, 3), and `pack.json`, which describes it and is written last. Promises: the
images of a step are a function of (seed, step) alone, each epoch visits every image exactly once, and a corrupt or incomplete pack is
refused. Packs are built from shards in `components/stores/dataset_cache.py`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from model import rng

IMAGES_FILE = "images.npy"
PACK_FILE = "pack.json"
_VERIFY_IMAGES = 64


class PackCorrupt(ValueError):
    """The pack is missing, corrupt or incomplete. Build it again."""


@dataclass(frozen=True)
class Pack:
    """An open pack: the memory map, and the keys of its images in the same order."""

    images: np.ndarray
    keys: tuple[str, ...]
    dataset_digest: str
    pixels_sha256: str

    @property
    def image_px(self) -> int:
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.keys)


def open_pack(directory: Path) -> Pack:
    """Open the pack in `directory` as a read-only memory map.

    Raises:
        PackCorrupt: if it is missing, or if its files do not match.
    """
    try:
        description = json.loads((directory / PACK_FILE).read_text())
        images = np.load(directory / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
        keys, digest, pixels = tuple(description["keys"]), str(description["dataset_digest"]), str(description["pixels_sha256"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as cause:
        raise PackCorrupt(f"no usable pack in {directory}: {cause}") from cause
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[0] != len(keys) or images.shape[3] != 3:
        raise PackCorrupt(f"{directory / IMAGES_FILE} holds {images.dtype} {images.shape}, expected uint8 ({len(keys)}, h, w, 3)")
    return Pack(images=images, keys=keys, dataset_digest=digest, pixels_sha256=pixels)


def verify_pack(pack: Pack) -> None:
    """Check every pixel of `pack` against the sha256 in its description.

    Raises:
        PackCorrupt: if their sha256 is not that of the pixels that were written.
    """
    digest = hashlib.sha256()
    for start in range(0, len(pack), _VERIFY_IMAGES):
        digest.update(np.ascontiguousarray(pack.images[start : start + _VERIFY_IMAGES]).data)
    if digest.hexdigest() != pack.pixels_sha256:
        raise PackCorrupt("the pixels of the pack are corrupt: their sha256 is not that of the pixels that were written")


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return a permutation of range(num_images) that is a function of (seed, epoch)."""
    drawn = rng.words(seed, rng.Stream.ORDER, epoch, torch.arange(num_images), 2).numpy()
    return np.lexsort((np.arange(num_images), drawn[:, 1], drawn[:, 0]))


def indices_for_step(*, seed: int, step: int, batch_images: int, num_images: int) -> np.ndarray:
    """Return the images of the global batch of `step`: the next `batch_images` of the endless sequence of shuffled epochs."""
    positions = np.arange(step * batch_images, (step + 1) * batch_images)
    epochs, offsets = positions // num_images, positions % num_images
    indices = np.empty(batch_images, dtype=np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        indices[in_epoch] = epoch_order(seed, int(epoch), num_images)[offsets[in_epoch]]
    return indices


class BatchReader:
    """Reads uint8 image batches to a device, from device memory, or from the memory map one batch ahead."""

    def __init__(self, pack: Pack, device: torch.device, *, on_device: bool) -> None:
        self._device = device
        self._pack = pack
        self._resident = torch.from_numpy(np.array(pack.images)).to(device) if on_device else None
        self._prefetch: tuple[bytes, Future[Tensor]] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")

    def read(self, indices: np.ndarray, *, next_indices: np.ndarray | None = None) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images with `indices`, in channels-last memory; `next_indices` are read ahead for the next call."""
        if self._resident is not None:
            return self._resident[self._pin_memory(torch.from_numpy(indices)).to(self._device, non_blocking=True)].permute(0, 3, 1, 2)
        pending = (
            self._prefetch[1]
            if self._prefetch is not None and self._prefetch[0] == indices.tobytes()
            else self._pool.submit(self._gather, indices)
        )
        self._prefetch = None if next_indices is None else (next_indices.tobytes(), self._pool.submit(self._gather, next_indices))
        return pending.result().to(self._device, non_blocking=True).permute(0, 3, 1, 2)

    def _gather(self, indices: np.ndarray) -> UInt8[Tensor, "b h w 3"]:
        order = np.argsort(indices, kind="stable")
        batch = np.empty((len(indices), *self._pack.images.shape[1:]), dtype=np.uint8)
        batch[order] = self._pack.images[indices[order]]
        return self._pin_memory(torch.from_numpy(batch))

    def _pin_memory(self, batch: Tensor) -> Tensor:
        """Return `batch` in page-locked memory for CUDA: a copy from other memory would make the host wait."""
        return batch.pin_memory() if self._device.type == "cuda" else batch

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class PackWriter:
    """Writes a pack image by image with constant memory; it becomes visible once every key has its image.

    Use as a context manager; it returns the function that writes the next image, uint8 (h, w, 3).
    """

    def __init__(self, directory: Path, *, shape: tuple[int, int], keys: list[str], dataset_digest: str) -> None:
        self._directory = directory
        self._keys = keys
        self._digest = dataset_digest
        self._shape = (len(keys), *shape, 3)
        self._next = 0
        self._pixels = hashlib.sha256()

    def __enter__(self) -> Callable[[np.ndarray], None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / PACK_FILE).unlink(missing_ok=True)
        path = self._directory / IMAGES_FILE
        self._map = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=self._shape)
        if hasattr(os, "posix_fallocate"):
            # Without its blocks a memory map on a full disk ends in SIGBUS instead of an error.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return self._add

    def _add(self, image: np.ndarray) -> None:
        self._map[self._next] = image
        self._pixels.update(np.ascontiguousarray(image).data)
        self._next += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._map.flush()
        del self._map
        if kind is not None:
            return
        if self._next != len(self._keys):
            raise PackCorrupt(f"{self._next} images were added for {len(self._keys)} keys")
        partial = self._directory / (PACK_FILE + ".partial")
        description = {"dataset_digest": self._digest, "pixels_sha256": self._pixels.hexdigest(), "keys": self._keys}
        with partial.open("w") as file:
            file.write(json.dumps(description))
            file.flush()
            os.fsync(file.fileno())  # the pixels were flushed to disk before it
        partial.replace(self._directory / PACK_FILE)
