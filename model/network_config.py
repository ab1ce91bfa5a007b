"""The `network` section: the shape of the denoiser."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from model.frozen_config import FrozenConfig


class NetworkConfig(FrozenConfig):
    """The denoiser: a convolutional encoder-decoder with skips around a Diffusion Transformer."""

    image_px: int = Field(ge=8, le=2048, description="side of the square training images in pixels")
    codec: Literal["residual", "plain", "seed_compat"] = Field(
        "residual",
        description="residual: space-to-depth and residual blocks; plain: strided convolutions, latent_channels wide (`seed`); "
        "seed_compat: the whole network of the published checkpoint dit_final_12_f_250.pth, with blocks of its own",
    )
    stem_px: int = Field(2, ge=1, le=8, description="residual codec: pixels folded into channels before the first level, per side")
    channels: tuple[int, ...] = Field((), max_length=6, description="residual codec: channels per level, finest first")
    res_blocks: tuple[int, ...] = Field(
        (), max_length=6, description="residual codec: residual blocks per level, in the encoder and again in the decoder"
    )
    res_norm: Literal["group", "layer"] = Field(
        "group",
        exclude_if=lambda norm: norm == "group",  # manifests and run keys from before it stay the same
        description="residual codec: group: two group norms in each residual block, one before the output; layer: one layer norm over the "
        "channels of each position instead, which keeps the brightness and contrast of each image and costs less",
    )
    group_channels: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda channels: channels is None,  # manifests and run keys from before it stay the same
        description="residual codec with group norms: channels of a group; left out, 32 groups or as many as divide the channels",
    )
    codec_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda probability: probability == 0,  # manifests and run keys from before it stay the same
        description="residual codec: dropout probability before the second convolution of each residual block",
    )
    linear_output: bool = Field(
        False,
        exclude_if=lambda enabled: not enabled,  # manifests and run keys from before it stay the same
        description="residual codec: neither norm nor activation before the last convolution, so that the output keeps how strong the "
        "detail at each position is",
    )
    latent_channels: int = Field(ge=1, le=4096, description="channels of the latent that the transformer reads")
    width: int = Field(ge=8, le=8192, description="transformer width")
    depth: int = Field(ge=1, le=128, description="transformer blocks")
    heads: int = Field(ge=1, le=128, description="attention heads")
    patch_px: int = Field(ge=1, le=16, description="latent positions per token, per side")
    block: Literal["modern", "dit"] = Field(
        "modern", description="modern: RMSNorm, QK-norm, axial RoPE, SwiGLU; dit: LayerNorm, sin-cos positions, GELU (Peebles & Xie 2023)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability inside the transformer blocks")
    augmentation: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda probability: probability == 0,  # manifests and run keys from before it stay the same
        description="probability with which a training image is turned upside down (half of it), scaled, rotated, stretched and moved, "
        "each on its own; the network gets the parameters as a condition and samples without them (Karras et al. 2022, appendix F.2)",
    )
    linear_path: bool = Field(
        False,
        exclude_if=lambda enabled: not enabled,  # manifests and run keys from before it stay the same
        description="linear layers from the pixels of each token's patch to the token and back, beside the codec, and a share of the "
        "input, learned for each time: the network then contains a plain Diffusion Transformer",
    )
    local_share: bool = Field(
        False,
        exclude_if=lambda enabled: not enabled,  # manifests and run keys from before it stay the same
        description="linear_path: learn the share of the input for each octave and position as well, from the decoder: noise is removed "
        "from smooth areas, and detail is kept",
    )

    @property
    def drops_values(self) -> bool:
        """Whether a training step draws random numbers for dropout."""
        return self.dropout > 0 or self.codec_dropout > 0

    @property
    def levels(self) -> int:
        """Resolutions of the codec, the latent's included."""
        return len(self.channels) if self.codec == "residual" else 4

    @property
    def latent_stride_px(self) -> int:
        """Pixels per latent position, per side."""
        return (self.stem_px if self.codec == "residual" else 1) * 2 ** (self.levels - 1)

    @property
    def total_stride_px(self) -> int:
        """Pixels per token, per side: every image side must be a multiple of it."""
        return self.latent_stride_px * self.patch_px

    def check_sides(self, height: int, width: int) -> None:
        """Refuse images that do not divide into tokens.

        Raises:
            ValueError: if a side is not a multiple of `total_stride_px`.
        """
        stride_px = self.total_stride_px
        if height % stride_px or width % stride_px:
            raise ValueError(f"image sides {height}x{width} must be multiples of {stride_px}, the network's total stride")

    def problems(self) -> Iterator[str]:
        if self.codec == "residual" and (not self.channels or len(self.channels) != len(self.res_blocks)):
            yield (f"channels {list(self.channels)} and res_blocks {list(self.res_blocks)} must name the same levels, at least one")
        if self.codec != "residual" and (self.channels or self.res_blocks):
            yield f"channels and res_blocks belong to the residual codec: leave them out with codec = '{self.codec}'"
        if self.local_share and not self.linear_path:
            yield "local_share refines the share of the input that linear_path = true adds: set both"
        if self.codec == "seed_compat" and self.dropout > 0:
            yield "codec 'seed_compat' has no dropout: set dropout = 0"
        if self.codec == "seed_compat" and self.augmentation > 0:
            yield "codec 'seed_compat' takes no parameters of an augmentation: set augmentation = 0"
        if any(c < 4 or c % 4 for c in self.channels):
            yield f"channels {list(self.channels)} must be multiples of 4 (group normalisation)"
        if self.group_channels is not None and any(c % self.group_channels for c in self.channels):
            yield f"channels {list(self.channels)} must be multiples of group_channels {self.group_channels}"
        if any(n < 1 for n in self.res_blocks):
            yield f"res_blocks {list(self.res_blocks)} must be at least 1 per level"
        if self.width % self.heads:
            yield f"width {self.width} must be a multiple of heads {self.heads}"
        elif (self.width // self.heads) % 4:
            yield f"width / heads = {self.width // self.heads} must be a multiple of 4 (rotary positions in two axes)"
        if self.levels and self.image_px % self.total_stride_px:
            yield (
                f"image_px {self.image_px} must be a multiple of {self.total_stride_px} "
                f"(latent stride {self.latent_stride_px} x patch_px {self.patch_px})"
            )
