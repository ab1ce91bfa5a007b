"""Scores of `learning.py` by the functions of the evaluate step: distances, precision and recall on random convolutions; spectrum."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from components.evaluate.metrics.frechet import frechet_distance
from components.evaluate.metrics.mind import sliced_distance
from components.evaluate.moments import statistics
from components.evaluate.random_conv import RandomConvExtractor
from components.evaluate.spectrum import NUM_OCTAVES, energy_per_octave

_PASS_IMAGES = 128
_PATCHES_PER_SIDE = 8
_SMALL = 1e-6


def patch_differences(images: np.ndarray) -> tuple[float, float]:
    """Return the mean squares of differences between neighbours inside patches, and across their edges, of images (n, h, w, 3), uint8.

    Patches are those of the plain transformer of `contenders.py`: 8 on each side of the image.
    """
    inside, across = [], []
    for axis in (1, 2):
        squares = np.diff(images.astype(np.float32) / 127.5, axis=axis) ** 2
        patch_px = images.shape[axis] // _PATCHES_PER_SIDE
        at_edge = np.arange(1, images.shape[axis]) % patch_px == 0
        inside.append(squares.compress(~at_edge, axis).mean())
        across.append(squares.compress(at_edge, axis).mean())
    return float(np.mean(inside)), float(np.mean(across))


class Scorer:
    """Compares images with the training images."""

    KEYS: ClassVar[tuple[str, ...]] = (
        "distance",
        "mind",
        "precision",
        "recall",
        "inside_patches",
        "seams",
        "spectrum_error",
        *(f"octave_{at + 1}" for at in range(NUM_OCTAVES)),
    )

    def __init__(self, references: np.ndarray) -> None:
        self._extractor = RandomConvExtractor()
        self._references = references
        self._differences = patch_differences(references)
        self._features, self._energy = self._measured(references)
        self._moments = statistics(self._features)

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """Return the scores of uint8 images (n, h, w, 3); octave 1 is the finest, 1 is right for each octave.

        The error of the spectrum is the mean of |log2| of the octaves: 1 is half or twice of the energy in each. Octaves count the edges of
        patches as detail: `inside_patches` is the energy of differences inside patches over that of the references, and `seams` the
        ratio of differences across their edges to those inside, over that of the references. 1 is right for both.
        """
        features, energy = self._measured(images)
        result = prc_features_to_metric(features, self._features, save_cpu_ram=False, verbose=False)
        octaves = energy.mean(0) / self._energy.mean(0)
        (inside, across), (real_inside, real_across) = patch_differences(images), self._differences
        values = [
            frechet_distance(statistics(features), self._moments),
            sliced_distance(features, self._features),
            result[KEY_METRIC_PRECISION],
            result[KEY_METRIC_RECALL],
            inside / real_inside,
            across / max(inside, _SMALL) * real_inside / real_across,
            octaves.clamp(min=_SMALL).log2().abs().mean(),
            *octaves.tolist(),
        ]
        return {key: round(float(value), 4) for key, value in zip(self.KEYS, values, strict=True)}

    def floor(self, count: int) -> dict[str, float]:
        """Return the scores of `count` training images, mirrored: what perfect samples could reach."""
        return self.scores(self._references[:count, :, ::-1])

    @torch.inference_mode()
    def _measured(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        parts = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).split(_PASS_IMAGES)
        return torch.cat([self._extractor(part)[0] for part in parts]), torch.cat([energy_per_octave(part) for part in parts])
