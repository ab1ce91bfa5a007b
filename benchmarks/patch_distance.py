"""Sliced Wasserstein distance between patches of two sets of images, one for each level of a Laplacian pyramid.

Source: Karras et al. 2018, "Progressive growing of GANs for improved quality, stability, and variation", section 5: 7 x 7 pixels a patch,
128 patches per image and level, each set normalised to mean 0 and deviation 1 in each colour. The distance is that of order 2, squared, as
for MIND (`sliced_distance.py`), where the paper has order 1. Finer levels see edges and texture, coarser ones shape. The mosaic that a
plain transformer draws stands out, which a Frechet distance on random convolutions hardly sees. Contrast is normalised, so blur shows
little: the spectrum has it.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.features.sliced_distance import sliced_distance

PATCH_PX = 7
COARSEST_PX = 16
_PER_IMAGE = 128
_BLUR = (1.0, 4.0, 6.0, 4.0, 1.0)

Images = Float[Tensor, "n 3 side side"]


@torch.inference_mode()
def patch_distances(images: np.ndarray, references: np.ndarray) -> dict[int, float]:
    """Return the distance at each level, by the side of its images in pixels, finest first.

    Both have the shape (n, side, side, 3), uint8. The result is a function of them alone; equal sets are near 0, because their patches are
    drawn at different places.

    Raises:
        ValueError: if the side is not 16 times a power of two.
    """
    side = images.shape[1]
    if side < COARSEST_PX or (side & (side - 1)):
        raise ValueError(f"a side of {side} px is not {COARSEST_PX} times a power of two")
    pyramids = [_pyramid(torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()) for batch in (images, references)]
    generator = torch.Generator().manual_seed(0)
    distances = {}
    for level, reference_level in zip(*pyramids, strict=True):
        patches, reference_patches = (_normalised_patches(batch, generator) for batch in (level, reference_level))
        distances[level.shape[-1]] = sliced_distance(patches, reference_patches)
    return distances


def _pyramid(images: Images) -> list[Images]:
    """Return what each level adds to the coarser ones, finest first, and the coarsest level last."""
    levels = []
    while images.shape[-1] > COARSEST_PX:
        coarse = _blur(images)[..., ::2, ::2]
        doubled = torch.zeros_like(images)
        doubled[..., ::2, ::2] = coarse
        levels.append(images - 4 * _blur(doubled))
        images = coarse
    return [*levels, images]


def _blur(images: Images) -> Images:
    line = torch.tensor(_BLUR) / sum(_BLUR)
    kernel = torch.outer(line, line).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def _normalised_patches(images: Images, generator: torch.Generator) -> Float[Tensor, "patches values"]:
    windows = images.unfold(2, PATCH_PX, 1).unfold(3, PATCH_PX, 1)  # (n, 3, rows, columns, 7, 7), a view
    count = len(images) * _PER_IMAGE
    rows, columns = (torch.randint(windows.shape[axis], (count,), generator=generator) for axis in (2, 3))
    patches = windows[torch.arange(len(images)).repeat_interleave(_PER_IMAGE), :, rows, columns]
    mean, spread = patches.mean((0, 2, 3), keepdim=True), patches.std((0, 2, 3), keepdim=True).clamp(min=1e-8)
    return ((patches - mean) / spread).flatten(1)
