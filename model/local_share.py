"""Share of the noisy image in the output, per octave and position: a filter that keeps detail where there is some.

Promises: the octaves of `split_octaves` sum to the image, and are computed at its full resolution, so that no grid shows.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

NUM_OCTAVES = 4
"""Three octaves, and all that is coarser."""
NUM_GATES = NUM_OCTAVES - 1
"""What is coarser than the octaves has no gate: it hardly carries noise."""


def split_octaves(images: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b c h w"]]:
    """Return the octaves of `images`, the finest first, by differences of ever wider binomial filters (a trous, Starck & Murtagh 1998)."""
    # Rows of three channels, as channels-last images have them, take a CPU twice as long.
    octaves, coarse = [], images.contiguous() if images.device.type == "cpu" else images
    for distance_px in (1, 2, 4):
        coarser = _blur(_blur(coarse, distance_px, axis=-1), distance_px, axis=-2)
        octaves.append(coarse - coarser)
        coarse = coarser
    return [*octaves, coarse]


def _blur(images: Float[Tensor, "b c h w"], distance_px: int, *, axis: int) -> Float[Tensor, "b c h w"]:
    """Average along `axis` with weights 1/4, 1/2, 1/4 of pixels at `distance_px`; pixels at the edge are repeated beyond it."""
    beyond = (distance_px, distance_px)
    padded = F.pad(images, (*beyond, 0, 0) if axis == -1 else (0, 0, *beyond), mode="replicate")
    left, middle, right = (padded.narrow(axis, at, images.shape[axis]) for at in (0, distance_px, 2 * distance_px))
    return torch.add(left, middle, alpha=2).add_(right).mul_(0.25)


def gated_share(
    images: Float[Tensor, "b 3 h w"], shares: Float[Tensor, "b octaves"], gates: Float[Tensor, "b gates h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Return the sum of the octaves of `images`, each times its share, and all but the coarsest times 1 + its gate at each position."""
    *octaves, coarse = split_octaves(images)
    *of_octaves, of_coarse = shares[..., None, None, None].unbind(1)
    share = of_coarse * coarse
    for octave, weight, gate in zip(octaves, of_octaves, gates.split(1, dim=1), strict=True):
        share = share + weight * (1 + gate) * octave
    return share
