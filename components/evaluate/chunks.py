"""Feature files between the ranks and the metrics: one per kind of image, part of the features and shard.

Promises: a file that exists is complete.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.system.own_folder import partial_name

FAKES, REALS, MIRRORED, NOISE = "fakes", "reals", "mirrored", "noise"
MAIN, LOGITS, MANIFOLD, ENERGY = "main", "logits", "manifold", "energy"


def chunk_path(folder: Path, kind: str, part: str, start: int) -> Path:
    """Return the file of a shard's features."""
    return folder / f"{kind}-{part}-{start:08d}.npy"


def save_chunk(folder: Path, kind: str, part: str, start: int, rows: Sequence[Tensor]) -> None:
    """Store the features of the shard that begins at image `start`, as float32."""
    path = chunk_path(folder, kind, part, start)
    partial = partial_name(path)
    with partial.open("wb") as file:
        np.save(file, torch.cat(list(rows)).float().cpu().numpy(), allow_pickle=False)
    partial.replace(path)


def load_chunks(folder: Path, kind: str, part: str) -> np.ndarray | None:
    """Return all rows of a kind, in the order of their indices, or None if there are none."""
    paths = sorted(folder.glob(f"{kind}-{part}-*.npy"))
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths]) if paths else None
