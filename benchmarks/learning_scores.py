"""Scores of `learning.py` by the functions of the evaluate step: distances, precision and recall on random convolutions; spectrum."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from benchmarks.patch_distance import patch_distances
from components.evaluate.spectrum import NUM_OCTAVES, energy_per_octave
from components.features.frechet import frechet_distance
from components.features.moments import statistics
from components.features.random_conv import RandomConvExtractor
from components.features.sliced_distance import sliced_distance

_PASS_IMAGES = 128
_PATCHES_PER_SIDE = 8
_SMALL = 1e-6
_PATCH_DISTANCE_IMAGES = 256
"""128 patches of each take 25 s of processor time."""


def energy_inside_patches(images: np.ndarray) -> np.ndarray:
    """Return the energy per octave, finest first, of images (n, h, w, 3), uint8, in Haar wavelets that lie inside one patch.

    Patches are those of the plain transformer of `contenders.py`, 8 on each side of the image, so their edges do not count.
    """
    coarse, octaves = images.astype(np.float32) / 127.5 - 1, []
    while coarse.shape[1] > _PATCHES_PER_SIDE:
        corners = [coarse[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        mean = np.mean(corners, axis=0)
        octaves.append(float(np.mean([(corner - mean) ** 2 for corner in corners])))
        coarse = mean
    return np.array(octaves)


def seams(images: np.ndarray) -> float:
    """Return the mean square of differences between neighbours across edges of patches over that inside patches."""
    inside, across = [], []
    for axis in (1, 2):
        squares = np.diff(images.astype(np.float32) / 127.5, axis=axis) ** 2
        at_edge = np.arange(1, images.shape[axis]) % (images.shape[axis] // _PATCHES_PER_SIDE) == 0
        inside.append(squares.compress(~at_edge, axis).mean())
        across.append(squares.compress(at_edge, axis).mean())
    return float(np.mean(across) / max(np.mean(inside), _SMALL))


class Scorer:
    """Compares images with the training images."""

    KEYS: ClassVar[tuple[str, ...]] = (
        "distance",
        "mind",
        "precision",
        "recall",
        "inside_1",
        "inside_2",
        "inside_error",
        "seams",
        "patches_1",
        "patches_2",
        "spectrum_error",
        *(f"octave_{at + 1}" for at in range(NUM_OCTAVES)),
    )

    def __init__(self, references: np.ndarray) -> None:
        self._extractor = RandomConvExtractor()
        self._references = references
        self._inside, self._seams = energy_inside_patches(references), seams(references)
        self._features, self._energy = self._features_and_octaves(references)
        self._moments = statistics(self._features)

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """Return the scores of uint8 images (n, h, w, 3); octave 1 is the finest, 1 is right for each octave.

        The error of the spectrum is the mean of |log2| of the octaves: 1 is half or twice of the energy in each. These octaves count the
        edges of patches as detail. Those inside patches do not: `inside_1` and `inside_2` are the finest two, and `inside_error` is the
        error over all of them. `seams` is the ratio of differences across edges of patches to those inside, over that of the references.
        `patches_1` and `patches_2` are the distances of `patch_distance.py` at the two finest levels.
        """
        features, energy = self._features_and_octaves(images)
        result = prc_features_to_metric(features, self._features, save_cpu_ram=False, verbose=False)
        octaves = energy.mean(0) / self._energy.mean(0)
        inside = energy_inside_patches(images) / self._inside
        values = [
            frechet_distance(statistics(features), self._moments),
            sliced_distance(features, self._features),
            result[KEY_METRIC_PRECISION],
            result[KEY_METRIC_RECALL],
            inside[0],
            inside[1],
            np.abs(np.log2(inside.clip(min=_SMALL))).mean(),
            seams(images) / self._seams,
            *self._patch_distances(images),
            octaves.clamp(min=_SMALL).log2().abs().mean(),
            *octaves.tolist(),
        ]
        return {key: round(float(value), 4) for key, value in zip(self.KEYS, values, strict=True)}

    def floor(self, count: int) -> dict[str, float]:
        """Return the scores of `count` training images, mirrored: what perfect samples could reach."""
        return self.scores(self._references[:count, :, ::-1])

    def _patch_distances(self, images: np.ndarray) -> list[float]:
        """Compare the first images with the last references, which are not those whose floor is measured."""
        count = min(len(images), len(self._references), _PATCH_DISTANCE_IMAGES)
        by_side = patch_distances(images[:count], self._references[-count:])
        return list(by_side.values())[:2]  # finest first

    @torch.inference_mode()
    def _features_and_octaves(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        parts = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).split(_PASS_IMAGES)
        return torch.cat([self._extractor(part)[0] for part in parts]), torch.cat([energy_per_octave(part) for part in parts])
