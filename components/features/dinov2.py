"""DINOv2's ViT-L/14 as a feature extractor (Oquab et al. 2023): the class token of a 224 px image after the last norm, 1,024 numbers.

Promises: names of tensors are those of the published state dict (dinov2_vitl14_pretrain.pth), which is loaded strictly and with
`weights_only=True`. Images are resized by bicubic interpolation with antialiasing, as EDM2 and dgm-eval do; the resize is a part of the
extractor's identity (`extractors.py`).
"""

import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from components.errors import DataRefused, whole_text
from components.features.extractors import DINOV2_SIDE_PX, WEIGHTS_HINT
from components.features.names import DINOV2

_PATCH_PX = 14
_TRAINED_SIDE = 37
"""Patches per side of the images that it was trained on last (518 px)."""
_NORM_EPS = 1e-6
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        query, key, value = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(b, n, d)))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = _Mlp(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return cast(Tensor, x + self.ls2(self.mlp(self.norm2(x))))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH_PX, stride=_PATCH_PX)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return cast(Tensor, self.proj(x).flatten(2).transpose(1, 2))


class DinoV2(nn.Module):
    """A Vision Transformer with a class token, learned positions and LayerScale; the sizes are those of ViT-L/14 unless given."""

    def __init__(self, *, width: int = 1024, depth: int = 24, heads: int = 16, trained_side: int = _TRAINED_SIDE) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + trained_side**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training; published with the rest
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the class token of normalised images."""
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        tokens = tokens + self.positions(x.shape[-1] // _PATCH_PX)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens)[:, 0])

    def positions(self, side: int) -> Float[Tensor, "1 n d"]:
        """Return the positions for `side` patches per side, interpolated as in the published code: a tenth of a patch too large."""
        trained = math.isqrt(self.pos_embed.shape[1] - 1)
        if side == trained:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
        scale = (side + 0.1) / trained
        resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class DinoV2Extractor(nn.Module):
    """Resizes and normalises uint8 images, and returns their features as the only entry of a tuple."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: DinoV2) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"]]:
        side = DINOV2_SIDE_PX
        x = F.interpolate(images.float() / 255, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        return (self.network((x.clamp(0, 1) - self.mean) / self.std).float(),)


def load_dinov2(path: Path, shown: str, device: torch.device) -> nn.Module:
    """Return the extractor with the weights at `path`, which errors call `shown`, on `device`.

    Raises:
        DataRefused: if they cannot be loaded.
    """
    with torch.device("meta"):
        network = DinoV2()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights, strict=True, assign=True)
    except Exception as error:  # a file of another kind raises almost anything
        raise DataRefused(
            f"the weights {shown} of extractor {DINOV2!r} cannot be loaded: {whole_text(error)}", hint=WEIGHTS_HINT
        ) from error
    return DinoV2Extractor(network.requires_grad_(False).eval().float()).to(device)
