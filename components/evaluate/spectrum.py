"""Energy of images per octave of spatial frequency.

Promises: a function of each image alone; its mean colour does not count. Of an image with sides of n pixels, octave 1 is the finest, from
n/4 cycles per image up; octaves 2 and 3 are the next ones, and the last ring is all that is coarser than n/16.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

NUM_OCTAVES = 4
"""Three octaves and what is coarser."""


def energy_per_octave(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b octaves"]:
    """Return the mean square of each image, in [-1, 1] units, that lies in each octave, the finest first; summed over the colours.

    A Hann window keeps the edges of an image from adding energy to all octaves.
    """
    x = images.float() / 127.5 - 1
    height, width = x.shape[-2:]
    rows, columns = (torch.hann_window(side, periodic=False, device=x.device) for side in (height, width))
    window = rows[:, None] * columns
    x = (x - (x * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    power = torch.fft.rfft2(x).abs().square().sum(1)
    # rfft2 leaves out the mirrored half of the columns; only the first column, and the last of an even side, have no mirror.
    power[..., 1 : (width + 1) // 2] *= 2
    octaves = _octaves(height, width, x.device)
    scale = window.square().sum() * height * width
    return torch.stack([(power * (octaves == octave)).sum((-2, -1)) for octave in range(NUM_OCTAVES)], dim=1) / scale


def _octaves(height: int, width: int, device: torch.device) -> Int64[Tensor, "h half"]:
    """Return which octave each frequency of `rfft2` belongs to, 0 for the finest."""
    rows, columns = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
    cycles_per_px = torch.hypot(rows[:, None].expand(height, len(columns)), columns.expand(height, len(columns)))
    edges = torch.tensor([0.25 / 2**octave for octave in range(NUM_OCTAVES - 1)], device=device)
    return (cycles_per_px[..., None] < edges - 1e-6).sum(-1)
