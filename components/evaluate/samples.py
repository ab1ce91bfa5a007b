"""Sampled images in object storage, in shards, so that an evaluation that was killed resumes on any machine.

Layout: `images-<first>-<count>.npy`, uint8 (count, h, w, 3), and `....json` beside it, written last, with its sha256 (see
`stores/layout.py`). Promises: a shard without its JSON file does not exist; one whose bytes do not match it is sampled again, never used.
"""

import io
import json

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri
from model.canonical import canonical_json

Images = UInt8[Tensor, "b 3 h w"]
_MOST_BYTES = 2**32


def shards_of(num_images: int, shard_images: int) -> list[range]:
    """Return which images make up each shard; all but the last have the same number."""
    return [range(start, min(start + shard_images, num_images)) for start in range(0, num_images, shard_images)]


class SampleStore:
    """The shards below one location."""

    def __init__(self, store: ObjectStore, home: StoreUri, *, image_px: int) -> None:
        self._store = store
        self._home = home
        self._shape = (image_px, image_px, 3)

    def committed_shards(self) -> set[str]:
        """Return the names of the shards that were committed."""
        names = {item.uri.name for item in self._store.list(self._home)}
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    @staticmethod
    def name(shard: range) -> str:
        """Return the name of a shard."""
        return f"images-{shard.start:08d}-{len(shard):06d}"

    def read(self, shard: range) -> Images | None:
        """Return the images of a shard, or None if it is missing, corrupt or incomplete."""
        name = self.name(shard)
        try:
            note = json.loads(self._store.get_bytes(self._home / f"{name}.json"))
            raw = self._store.get_bytes(self._home / f"{name}.npy", sha256=str(note["sha256"]), max_bytes=_MOST_BYTES)
            images = np.load(io.BytesIO(raw), allow_pickle=False)
        except (ObjectMissing, DigestMismatch, ValueError, KeyError, TypeError):
            return None
        if images.dtype != np.uint8 or images.shape != (len(shard), *self._shape):
            return None
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def objects(self, shard: range) -> list[StoreUri]:
        """Return the objects of a shard, the one that commits it first."""
        return [self._home / f"{self.name(shard)}{suffix}" for suffix in (".json", ".npy")]

    def write(self, shard: range, images: Images) -> None:
        """Store the images of a shard, then the JSON file that commits them."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()), allow_pickle=False)
        name = self.name(shard)
        sha256 = self._store.put_bytes(self._home / f"{name}.npy", buffer.getvalue())
        self._store.put_bytes(self._home / f"{name}.json", canonical_json({"sha256": sha256, "first": shard.start, "count": len(shard)}))
