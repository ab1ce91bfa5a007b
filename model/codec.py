"""Convolutional encoder and decoder, in place of a VAE: image to latent and skips, latent and skips to image.

Promises: the decoder's last layer starts at zero, and every residual block starts as the identity. The residual codec folds pixels into
channels (space-to-depth) instead of striding, so it neither aliases nor works at full resolution with few channels. The plain codec is that
of the `seed` preset.
"""

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model import layers
from model.config import NetworkConfig
from model.layers import full_precision
from model.local_share import NUM_GATES
from model.residual_blocks import LeanBlock, PositionNorm, ResidualBlock, group_norm, norm_silu, normalised_for_image, zero
from model.thin_convolution import convolve_few_inputs, convolve_to_image

Skips = list[Tensor]


def in_channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return `x` in channels-last memory on CUDA: `pixel_shuffle` leaves it, and each compiled block would copy the tensor back."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cuda" else x


def _levels(config: NetworkConfig) -> nn.ModuleList:
    """Return the residual blocks of each level, finest first."""

    def block(channels: int) -> nn.Module:
        if config.res_norm == "layer":
            return LeanBlock(channels, config.width, dropout=config.codec_dropout)
        return ResidualBlock(channels, config.width, group_channels=config.group_channels, dropout=config.codec_dropout)

    return nn.ModuleList(nn.ModuleList(block(c) for _ in range(n)) for c, n in zip(config.channels, config.res_blocks, strict=True))


def _output_norm(config: NetworkConfig) -> nn.Module | None:
    """Return the norm before the last convolution, which an activation follows, or None for neither."""
    if config.linear_output:
        return None
    return group_norm(config.channels[0], config.group_channels) if config.res_norm == "group" else PositionNorm()


def _convolve_positions(layer: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """Return `layer(x)` for a layer that sees one position at a time; as a matrix product on CUDA, which adds the bias in passing."""
    if x.device.type != "cuda":
        return cast(Tensor, layer(x))
    assert isinstance(layer, nn.Conv2d)
    return F.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)


def merge_products(layer: nn.Conv2d, h: Float[Tensor, "b c h w"], skip: Float[Tensor, "b s h w"]) -> Float[Tensor, "b k h w"]:
    """Return `layer` of both beside each other, as a sum of two matrix products: nothing is concatenated, and no gradient is cut in two."""
    weight = layer.weight.flatten(1)
    rows, skip_rows = (x.movedim(1, -1).flatten(0, 2) for x in (h, skip))
    of_h = torch.addmm(cast(Tensor, layer.bias), rows, weight[:, : h.shape[1]].t())
    merged = torch.addmm(of_h, skip_rows, weight[:, h.shape[1] :].t())
    return merged.unflatten(0, (len(h), *h.shape[2:])).movedim(-1, 1)


class ResidualEncoder(nn.Module):
    """Space-to-depth stem, residual levels from fine to coarse, 1x1 to the latent. One skip per level."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.channels
        self.stem_px = config.stem_px
        self.stem = nn.Conv2d(3 * config.stem_px**2, channels[0], 3, padding=1)
        self.levels = _levels(config)
        self.downs = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(channels))
        self.to_latent = nn.Conv2d(channels[-1], config.latent_channels, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"], time: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b z lh lw"], Skips]:
        h = self.enter(x)
        skips: Skips = []
        for i, level in enumerate(self.levels):
            if i:
                h = self.down(h, i)
            for block in cast(nn.ModuleList, level):
                h = block(h, time)
            skips.append(h)
        return self.to_latent(h), skips

    def enter(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Return the input of the first level."""
        return convolve_few_inputs(self.stem, F.pixel_unshuffle(x, self.stem_px))

    def down(self, h: Float[Tensor, "b c h w"], level: int) -> Float[Tensor, "b d h/2 w/2"]:
        """Return the input of `level` from the output of the level before."""
        return _convolve_positions(self.downs[level - 1], F.pixel_unshuffle(h, 2))


class ResidualDecoder(nn.Module):
    """The encoder's mirror: merge each level's skip by concatenation and 1x1, residual blocks, depth-to-space."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.channels
        self.stem_px = config.stem_px
        self.from_latent = nn.Conv2d(config.latent_channels, channels[-1], 1)
        self.merges = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels)
        self.levels = _levels(config)
        self.ups = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(channels))
        self.out_norm = _output_norm(config)
        outputs = 3 + NUM_GATES if config.local_share else 3
        self.out = zero(nn.Conv2d(channels[0], outputs * config.stem_px**2, 3, padding=1))

    def forward(self, z: Float[Tensor, "b z lh lw"], skips: Skips, time: Float[Tensor, "b d"]) -> Float[Tensor, "b outputs h w"]:
        """Return the image; with `config.local_share` the gates of `local_share.py` are the channels after its three."""
        h = self.from_latent(z)
        for i in reversed(range(len(self.levels))):
            h = self.merge(h, skips[i], i)
            for block in cast(nn.ModuleList, self.levels[i]):
                h = block(h, time)
            if i:
                h = self.up(h, i)
        return self.to_image(h)

    def merge(self, h: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c h w"], level: int) -> Float[Tensor, "b c h w"]:
        """Return the input of `level` from what comes from below and the skip."""
        layer = cast(nn.Conv2d, self.merges[level])
        return merge_products(layer, h, skip) if h.device.type == "cuda" else layer(torch.cat([h, skip], dim=1))

    def up(self, h: Float[Tensor, "b c h w"], level: int) -> Float[Tensor, "b d 2*h 2*w"]:
        """Return what the next finer level merges, from the output of `level`."""
        return in_channels_last(F.pixel_shuffle(_convolve_positions(self.ups[level - 1], h), 2))

    def to_image(self, h: Float[Tensor, "b c gh gw"]) -> Float[Tensor, "b outputs h w"]:
        """Return the image, in float32, from the output of the finest level."""
        hidden = self.activate(h)
        halve = hidden.device.type == "cuda" and torch.is_autocast_enabled("cuda") and torch.is_grad_enabled()
        with full_precision(hidden.device):
            pixels = convolve_to_image(self.out, hidden.float(), halve_weight_gradient=halve)
            return in_channels_last(F.pixel_shuffle(pixels, self.stem_px))

    def activate(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        match self.out_norm:
            case None:
                return h
            case nn.GroupNorm():
                return normalised_for_image(h, self.out_norm) if layers.compiled_for_cuda(h) else norm_silu(h, self.out_norm)
            case norm:
                return F.silu(norm(h))


class PlainEncoder(nn.Module):
    """One full-resolution convolution, then three strided ones, all `latent_channels` wide. The last skip is the latent itself."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.latent_channels
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(config.levels - 1))

    def forward(self, x: Float[Tensor, "b 3 h w"], time: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b z lh lw"], Skips]:
        h = F.silu(self.stem(x))
        skips = [h]
        for down in self.downs:
            h = F.silu(down(h))
            skips.append(h)
        return h, skips


class PlainDecoder(nn.Module):
    """Concatenate the skip, upsample by a transposed convolution, mix by a 3x3; no activation on the output image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.latent_channels
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1) for _ in range(config.levels - 1))
        self.mixes = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(config.levels - 1))
        self.out = zero(nn.Conv2d(2 * width, 3, 3, padding=1))

    def forward(self, z: Float[Tensor, "b z lh lw"], skips: Skips, time: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        h = z
        for i in reversed(range(len(self.ups))):
            h = F.silu(self.mixes[i](self.ups[i](torch.cat([h, skips[i + 1]], dim=1))))
        hidden = torch.cat([h, skips[0]], dim=1)
        with full_precision(hidden.device):
            return self.out(hidden.float())


def build_codec(config: NetworkConfig) -> tuple[nn.Module, nn.Module]:
    """Return the encoder and decoder that `config` names."""
    if config.codec == "residual":
        return ResidualEncoder(config), ResidualDecoder(config)
    return PlainEncoder(config), PlainDecoder(config)
