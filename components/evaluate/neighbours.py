"""The nearest training image of each sample, in feature space, to detect memorisation.

Promises: training images are compared mirrored too, because a model that was trained with flips copies either; distances are
reported as a share of the usual one between neighbouring training images (the median, each to its nearest other), so that a threshold means
the same for every extractor; an exact copy has share 0. The second nearest training image is another image than the nearest, not
its mirror image.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_CHUNK = 1024
_SCALE_IMAGES = 5000


class Match(NamedTuple):
    """A sample and its nearest training image, mirrored or not, and how far apart they are."""

    sample: int
    real: int
    mirrored: bool
    share: float


@dataclass(frozen=True)
class Nearest:
    """For each sample its nearest training image, whether that is mirrored, and how far it is, in usual distances."""

    real: np.ndarray
    mirrored: np.ndarray
    share: np.ndarray
    ratio: np.ndarray
    """The distance to the nearest training image over that to the second nearest; 0 for an exact copy."""

    def copied_share(self, below: float) -> float:
        """Return the share of samples that are nearer than `below`."""
        return float((self.share < below).mean())

    def closest(self, count: int) -> list[Match]:
        """Return the samples that are nearest to a training image, the nearest first."""
        order = np.argsort(self.share, kind="stable")[:count]
        return [Match(int(n), int(self.real[n]), bool(self.mirrored[n]), float(self.share[n])) for n in order]


def nearest_training_images(samples: Float[Tensor, "n d"], training: Float[Tensor, "m d"], mirrored: Float[Tensor, "m d"]) -> Nearest:
    """Return the nearest of the `training` images (at least two), or of the same ones `mirrored`, for each of `samples`."""
    centre, count = training.mean(0), len(training)  # distances of centred features keep more digits in float32
    both = torch.cat([training, mirrored]) - centre
    rows = samples - centre
    index, second = _nearest_two(rows, both, count)
    # The matrix product behind cdist rounds; the distances of the pairs that count are taken again, exactly.
    distance, next_distance = ((rows - both[which]).norm(dim=1) for which in (index, second))
    ratio = torch.where(distance > 0, distance / next_distance.clamp(min=torch.finfo(distance.dtype).tiny), 0.0)
    share = distance / _usual_distance(both, count)
    return Nearest(
        real=(index % count).cpu().numpy(), mirrored=(index >= count).cpu().numpy(), share=share.cpu().numpy(), ratio=ratio.cpu().numpy()
    )


def _nearest_two(rows: Float[Tensor, "n d"], both: Float[Tensor, "k d"], count: int) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Return the nearest image of each row and the nearest of the other images, either way round; `count` images are in `both` twice."""
    nearest = []
    for part in rows.split(_CHUNK):
        distances = torch.cdist(part, both)
        first = distances.argmin(dim=1)
        row = torch.arange(len(part), device=rows.device)
        distances[row, first % count] = distances[row, first % count + count] = math.inf
        nearest.append(torch.stack([first, distances.argmin(dim=1)]))
    first, second = torch.cat(nearest, dim=1)
    return first, second


def _usual_distance(both: Float[Tensor, "k d"], count: int) -> Float[Tensor, ""]:
    """Return the median distance of the first `count` rows to the nearest image but themselves, either way round."""
    minima = []
    for part in torch.arange(0, count, max(1, count // _SCALE_IMAGES), device=both.device).split(_CHUNK):
        distances = torch.cdist(both[part], both)
        row = torch.arange(len(part), device=both.device)
        distances[row, part] = distances[row, part + count] = math.inf
        minima.append(distances.min(dim=1).values)
    nearest = torch.cat(minima)
    return nearest[nearest > 0].median() if bool((nearest > 0).any()) else torch.ones_like(nearest[0])
