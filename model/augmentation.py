"""Geometric augmentation of training images, whose parameters the network gets as a condition (Karras et al. 2022, appendix F.2).

Promises: image and parameters are functions of (seed, step, position in the global batch), the same on every device up to rounding; an
image that no transformation was drawn for keeps its pixels bit for bit, and so does one that is only turned upside down. The set is that
of the paper for FFHQ without the horizontal flip, which `training.horizontal_flip` does for all images without a condition. The network
tells transformed images from others by the parameters, and samples without any, so its samples do not look transformed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from model import rng

NUM_PARAMETERS = 8
"""Flip; scale; cosine - 1 and sine of the rotation; anisotropy along and across; translation along and across. All zero: no change."""
_SCALE_STD = 0.2
"""Octaves, also of the anisotropy."""
_TRANSLATION_STD = 0.125
"""Sides of the image."""
_ROTATED_ANISOTROPY = 0.5
"""Share of the anisotropies with an axis of any direction; the others are along the sides."""
_WORDS = 13


class Transformation(NamedTuple):
    """How each image is transformed, in this order: turned upside down, scaled, rotated, stretched along an axis, moved."""

    flip: Bool[Tensor, " b"]
    scale: Float64[Tensor, " b"]
    """Octaves: 1 shows everything twice as large."""
    angle: Float64[Tensor, " b"]
    """Radians, clockwise on a screen."""
    stretch: Float64[Tensor, " b"]
    """Octaves: 1 is twice as long along the axis, and half as long across it."""
    axis: Float64[Tensor, " b"]
    """Radians from the horizontal, clockwise on a screen."""
    shift: Float64[Tensor, "b 2"]
    """To the right and down, in sides of the image."""

    @property
    def parameters(self) -> Float[Tensor, "b parameters"]:
        """The condition of the network."""
        along, across = self.stretch * self.axis.cos(), self.stretch * self.axis.sin()
        scale, rotation, shift = self.scale / _SCALE_STD, (self.angle.cos() - 1, self.angle.sin()), self.shift / _TRANSLATION_STD
        columns = (self.flip.double(), scale, *rotation, along / _SCALE_STD, across / _SCALE_STD, *shift.unbind(1))
        return torch.stack(columns, dim=1).float()

    @property
    def is_resampled(self) -> Bool[Tensor, " b"]:
        """Whether pixels of an image come to lie between those of the grid."""
        return torch.stack((self.scale, self.angle, self.stretch, *self.shift.unbind(1))).ne(0).any(0)

    @property
    def sources(self) -> Float[Tensor, "b 2 3"]:
        """The matrix from a position of the result to that in the image, both from -1 to 1, first to the right and then down.

        Written out in elements: matrix products on a GPU may round positions to ten bits (TF32).
        """
        cosine, sine, grow = self.angle.cos(), self.angle.sin(), torch.exp2(-self.scale)
        along, across = torch.exp2(-self.stretch), torch.exp2(self.stretch)
        right, down = self.axis.cos(), self.axis.sin()
        xx, yy = right**2 * along + down**2 * across, down**2 * along + right**2 * across
        xy = right * down * (along - across)
        rows = (
            (grow * (cosine * xx + sine * xy), grow * (cosine * xy + sine * yy)),
            (grow * (cosine * xy - sine * xx), grow * (cosine * yy - sine * xy)),
        )
        shift_x, shift_y = (2 * self.shift).unbind(1)
        return torch.stack([torch.stack((x, y, -(x * shift_x + y * shift_y)), dim=1) for x, y in rows], dim=1).float()

    def apply(self, images: Float[Tensor, "b c side side"]) -> Float[Tensor, "b c side side"]:
        """Return the transformed images, in [-1, 1] as `images` are; what lies outside of them is mirrored at their edges."""
        flipped = torch.where(self.flip[:, None, None, None], images.flip(-2), images)
        side = images.shape[-1]
        centres = (2 * torch.arange(side, device=images.device, dtype=torch.float32) + 1) / side - 1
        at = self.sources[:, :, :, None, None]
        grid = at[:, :, 0] * centres + at[:, :, 1] * centres[:, None] + at[:, :, 2]
        # Forward alone, so it is deterministic on CUDA too. Cubic, since a linear mixture of neighbours blurs.
        moved = F.grid_sample(flipped, grid.permute(0, 2, 3, 1), mode="bicubic", padding_mode="reflection", align_corners=False)
        return torch.where(self.is_resampled[:, None, None, None], moved.clamp(-1, 1), flipped).contiguous(
            memory_format=torch.channels_last
        )


@dataclass(frozen=True)
class Augmentation:
    """Draws transformations: each kind with `probability`, or half of it for the flip."""

    seed: int
    probability: float

    def draw(self, ids: Int64[Tensor, " b"], step: rng.Step) -> Transformation:
        """Return the transformations of the images at the positions `ids` of the global batch of `step`."""
        u = rng.uniform(self.seed, rng.Stream.AUGMENTATION, step, ids, _WORDS).unbind(1)
        flips, scales, rotates, stretches, shifts = (word < self.probability for word in u[:5])
        scale, stretch, *shift = (torch.special.ndtri(word) for word in u[5:9])
        angle = (2 * u[9] - 1) * math.pi
        # Half a turn: over a full one, as in the authors' code, stretching and shrinking along an axis would have the same parameters.
        axis = (u[10] - 0.5) * math.pi
        return Transformation(
            flip=flips & (u[11] < 0.5),
            scale=torch.where(scales, scale * _SCALE_STD, 0.0),
            angle=torch.where(rotates, angle, 0.0),
            stretch=torch.where(stretches, stretch * _SCALE_STD, 0.0),
            axis=torch.where(stretches & (u[12] < _ROTATED_ANISOTROPY), axis, 0.0),
            shift=torch.where(shifts[:, None], torch.stack(shift, dim=1) * _TRANSLATION_STD, 0.0),
        )
