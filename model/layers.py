"""Layers shared by the codec and the transformer: time embedding, modulation, positions, patches.

Promises: `unpatchify(patchify(x, p), p, h, w)` is bit-identical to `x`; rotary embedding keeps the norm of every pair.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.augmentation import NUM_PARAMETERS

TIME_FREQUENCIES = 256


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Suspend autocast on `device`, for the few places where bfloat16 costs quality: time embedding, output layer, loss."""
    # The meta device has no autocast to suspend (torch 2.15 raises on it).
    return nullcontext() if device.type == "meta" else torch.autocast(device_type=device.type, enabled=False)


def compiled_for_cuda(x: Tensor) -> bool:
    """Return whether operations on `x` are being compiled for a GPU, where custom kernels replace some of Inductor's."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


def precision_of_products(x: Tensor) -> torch.dtype:
    """Return the precision in which convolutions and matrix products of `x` work: that of autocast, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def sinusoid(positions: Float[Tensor, " b"], width: int, *, max_period: float = 10_000.0) -> Float[Tensor, "b d"]:
    """Embed scalars as [cos, sin] of geometrically spaced frequencies (Vaswani et al. 2017, in the order of Peebles & Xie 2023)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device, dtype=torch.float32) * (-math.log(max_period) / half))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Map a timestep in [0, 1000] to the vector that conditions every block. Always computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(TIME_FREQUENCIES, width)
        self.out = nn.Linear(width, width)
        for layer in (self.hidden, self.out):
            # Without memory there is nothing to draw, and torch (2.15) would import its compiler for it, which takes a second.
            if not layer.weight.is_meta:
                nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        with full_precision(t.device):
            return self.out(F.silu(self.hidden(sinusoid(t, TIME_FREQUENCIES))))


class AugmentationEmbedding(nn.Module):
    """Map the parameters of an augmentation to what is added to the time embedding: zero at the start, and for parameters of zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_PARAMETERS, width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, parameters: Float[Tensor, "b parameters"]) -> Float[Tensor, "b d"]:
        with full_precision(parameters.device):
            return self.linear(parameters)


class Modulation(nn.Module):
    """Turn the time embedding into `num_signals` vectors of `width`, zero at the start (adaLN-Zero, Peebles & Xie 2023, 3.2)."""

    def __init__(self, time_width: int, width: int, num_signals: int) -> None:
        super().__init__()
        self.num_signals = num_signals
        self.linear = nn.Linear(time_width, num_signals * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b w"], ...]:
        return self.linear(F.silu(time)).chunk(self.num_signals, dim=-1)


def patchify(images: Float[Tensor, "b c h w"], patch_px: int) -> Float[Tensor, "b n d"]:
    """Cut `images` into non-overlapping squares, row-major, each flattened as (channel, row, column).

    Follows Peebles & Xie 2023, section 3.2, with n = (h / patch_px) * (w / patch_px) and d = c * patch_px**2.

    Raises:
        ValueError: if a side is not a multiple of `patch_px`.
    """
    b, c, h, w = images.shape
    if h % patch_px or w % patch_px:
        raise ValueError(f"image sides {h}x{w} must be multiples of patch_px={patch_px}")
    grid = images.reshape(b, c, h // patch_px, patch_px, w // patch_px, patch_px)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch_px) * (w // patch_px), c * patch_px**2)


def unpatchify(tokens: Float[Tensor, "b n d"], patch_px: int, height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Undo `patchify` for an image of `height` x `width`."""
    b, _, d = tokens.shape
    rows, columns = height // patch_px, width // patch_px
    grid = tokens.reshape(b, rows, columns, d // patch_px**2, patch_px, patch_px)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // patch_px**2, height, width)


def sincos_positions(width: int, rows: int, columns: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Return fixed 2-D sine-cosine positions: the first half of each vector encodes the column, the second the row (MAE, DiT)."""

    def axis(coordinates: Float[Tensor, " n"]) -> Float[Tensor, "n half"]:
        quarter = width // 4
        frequencies = 1.0 / 10_000 ** (torch.arange(quarter, device=device, dtype=torch.float64) / quarter)
        angles = coordinates[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    row, column = torch.meshgrid(
        torch.arange(rows, device=device, dtype=torch.float64), torch.arange(columns, device=device, dtype=torch.float64), indexing="ij"
    )
    return torch.cat([axis(column.flatten()), axis(row.flatten())], dim=-1).float()


def rotary_angles(head_width: int, rows: int, columns: int, device: torch.device) -> Float[Tensor, "n half"]:
    """Return the rotation angle of each channel pair of each token: half of the pairs turn with the row, half with the column.

    Axial rotary positions (Su et al. 2021, per axis as in Crowson et al. 2024) with periods from 2 pi to 2 pi * 100 tokens.
    """
    per_axis = head_width // 4
    frequencies = 100.0 ** (-torch.arange(per_axis, device=device, dtype=torch.float32) / per_axis)
    row, column = torch.meshgrid(
        torch.arange(rows, device=device, dtype=torch.float32), torch.arange(columns, device=device, dtype=torch.float32), indexing="ij"
    )
    return torch.cat([row.flatten()[:, None] * frequencies, column.flatten()[:, None] * frequencies], dim=-1)


def rotate(x: Float[Tensor, "*b d"], cos: Float[Tensor, "*angles half"], sin: Float[Tensor, "*angles half"]) -> Float[Tensor, "*b d"]:
    """Turn the pairs (x[..., i], x[..., i + d/2]) by angles that broadcast over the axes before the last."""
    # The halves change places by an index alone: of chunks that are concatenated, Inductor writes each product to memory.
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (x * torch.cat([cos, cos], dim=-1) + swapped * torch.cat([-sin, sin], dim=-1)).to(x.dtype)
