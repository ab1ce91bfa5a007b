"""Packs from arrays in memory."""

from pathlib import Path

import numpy as np

from model.dataset import PackWriter


def write_pack(directory: Path, images: np.ndarray, keys: list[str], *, dataset_digest: str) -> None:
    """Write a pack of `images`, uint8 of shape (n, h, w, 3), under `keys`."""
    with PackWriter(directory, shape=images.shape[1:3], keys=keys, dataset_digest=dataset_digest) as add:
        for image in images:
            add(image)
