"""Is the model copying? The nearest training image of each sample, in feature space.

Promises: distances are given as a share of the usual one between neighbouring training images (the median, each to its nearest other), so
that a threshold means the same for every extractor; an exact copy has share 0. Whether a share of copies is acceptable is the gate's
business.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_CHUNK = 1024
_SCALE_IMAGES = 5000


@dataclass(frozen=True)
class Nearest:
    """For each sample, its nearest training image and how far that is, in units of the usual distance between training images."""

    index: np.ndarray
    share: np.ndarray

    def copied(self, below: float) -> float:
        """Return the share of samples that are nearer than `below`."""
        return float((self.share < below).mean())

    def closest(self, count: int) -> list[tuple[int, int, float]]:
        """Return (sample, training image, share) of the samples that are nearest to a training image."""
        order = np.argsort(self.share, kind="stable")[:count]
        return [(int(sample), int(self.index[sample]), float(self.share[sample])) for sample in order]


def nearest_training_images(samples: Float[Tensor, "n d"], training: Float[Tensor, "m d"]) -> Nearest:
    """Return the nearest of `training` for each of `samples`; `training` must hold at least two different images."""
    centre = training.mean(0)  # distances of centred features keep more digits in float32
    real = training - centre
    distance, index = _nearest(samples - centre, real)
    stride = max(1, len(real) // _SCALE_IMAGES)
    among_real = _second_nearest(real[::stride], real)
    scale = among_real[among_real > 0].median() if bool((among_real > 0).any()) else torch.ones(())
    return Nearest(index=index.cpu().numpy(), share=(distance / scale).cpu().numpy())


def _nearest(rows: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    found = [torch.cdist(part, real).min(dim=1) for part in rows.split(_CHUNK)]
    index = torch.cat([part.indices for part in found])
    # The matrix product behind cdist rounds; the distance of the one pair that counts is taken again, exactly.
    return (rows - real[index]).norm(dim=1), index


def _second_nearest(rows: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    return torch.cat([torch.cdist(part, real).kthvalue(2, dim=1).values for part in rows.split(_CHUNK)])
