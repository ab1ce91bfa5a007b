"""Residual blocks of the codec and their norms.

Promises: every block starts as the identity. Compiled for CUDA, one with group norms makes few passes over memory (`channel_norm.py`).
"""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model import instance_norm, layers
from model.layers import Modulation, precision_of_products


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Set weights and biases of `layer` to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class _GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that accepts a group of a single value: one image with one latent position normalises to the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int, group_channels: int | None = None) -> nn.GroupNorm:
    """Return a group normalisation with groups of `group_channels`, or at most 32 groups."""
    if group_channels is not None:
        return _GroupNorm(channels // group_channels, channels, eps=1e-6)
    # Groups of four channels or more lower the demo's loss by a tenth and worsen its distance: 0.389 instead of 0.300, same seed and data.
    return _GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def norm_silu(
    x: Float[Tensor, "b c h w"], norm: nn.GroupNorm, shift: Float[Tensor, "b c"] | None = None, scale: Float[Tensor, "b c"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Return silu(norm(x)), or silu((1 + scale) * norm(x) + shift)."""
    if instance_norm.is_faster(x, norm.num_groups):
        return instance_norm.normalise_modulate_silu(x, *_gain_and_bias(norm, shift, scale), norm.eps)
    hidden = norm(x)
    if shift is not None and scale is not None:
        hidden = hidden * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(hidden)


def _gain_and_bias(
    norm: nn.GroupNorm, shift: Float[Tensor, "b c"] | None, scale: Float[Tensor, "b c"] | None
) -> tuple[Float[Tensor, "#b c"], Float[Tensor, "#b c"]]:
    """Return gain and bias of `norm` and the modulation after it together."""
    if shift is None or scale is None:
        return norm.weight[None], norm.bias[None]
    return norm.weight * (1 + scale), torch.addcmul(shift, norm.bias[None], 1 + scale)


def normalised_for_image(h: Float[Tensor, "b c h w"], norm: nn.GroupNorm) -> Float[Tensor, "b c h w"]:
    """Return silu(norm(h)) in float32, in few passes over memory."""
    from model.channel_norm import Normalisation, normalise  # noqa: PLC0415 - needs Triton

    return normalise(h, Normalisation(*_gain_and_bias(norm, None, None), norm.num_groups, norm.eps, torch.float32))


def _dropout(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), the second convolution zero at the start."""

    def __init__(self, channels: int, time_width: int, *, group_channels: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = group_norm(channels, group_channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = group_norm(channels, group_channels)
        self.dropout = _dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulation = Modulation(time_width, channels, 2)

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        shift, scale = self.modulation(time)
        if layers.compiled_for_cuda(x):
            return self._in_few_passes(x, shift, scale)
        hidden = self.conv_in(norm_silu(x, self.norm_in))
        return x + self.conv_out(self.dropout(norm_silu(hidden, self.norm_out, shift, scale)))

    def _in_few_passes(
        self, x: Float[Tensor, "b c h w"], shift: Float[Tensor, "b c"], scale: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b c h w"]:
        from model.channel_norm import Normalisation, normalise, normalise_beside  # noqa: PLC0415 - needs Triton

        dtype = precision_of_products(x)
        first = Normalisation(*_gain_and_bias(self.norm_in, None, None), self.norm_in.num_groups, self.norm_in.eps, dtype)
        hidden, x = normalise_beside(x, first)
        hidden = F.conv2d(hidden, self.conv_in.weight, padding=self.conv_in.padding)
        gain, bias = _gain_and_bias(self.norm_out, shift, scale)
        second = Normalisation(gain, bias, self.norm_out.num_groups, self.norm_out.eps, dtype, self.conv_in.bias)
        return cast(Tensor, x + self.conv_out(self.dropout(normalise(hidden, second))))


class PositionNorm(nn.Module):
    """Layer normalisation over the channels of each position (Ba et al. 2016), with a scale and shift from outside or none."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6).movedim(-1, 1)


class LeanBlock(nn.Module):
    """x + conv(silu(conv(modulated layer norm(x)))), the second convolution zero at the start: one norm for `ResidualBlock`'s two."""

    def __init__(self, channels: int, time_width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = PositionNorm()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = _dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulation = Modulation(time_width, channels, 2)

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        shift, scale = self.modulation(time)
        hidden = self.norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return cast(Tensor, x + self.conv_out(self.dropout(F.silu(self.conv_in(hidden)))))
