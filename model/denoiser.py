"""The network as one module: encode the noisy image, refine the latent with the transformer, decode with skips.

Promises: `forward` maps (b, 3, h, w) and a timestep per image to (b, 3, h, w), and returns exactly zero at initialisation, for any image
side that is a multiple of the configured total stride. What the output means (image, noise, velocity) is the diffusion's business.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.codec import Skips, build_codec
from model.config import NetworkConfig
from model.dit import Core
from model.layers import TimeEmbedding


class Denoiser(nn.Module):
    """Encoder, Diffusion Transformer core on the latent, decoder with skips; end to end, without a VAE."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.time = TimeEmbedding(config.width)
        self.encoder, self.decoder = build_codec(config)
        self.core = Core(config)

    def encode(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b z lh lw"]:
        """Return the latent that the transformer reads: (b, latent_channels, h / stride, w / stride)."""
        self._check(x)
        latent, _ = self.encoder(x, self.time(t))
        return cast(Tensor, latent)

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Denoise `x` at timesteps `t`, which run from 0 (clean) to 1000 (noise).

        Raises:
            ValueError: if a side is not a multiple of `config.total_stride_px`.
        """
        self._check(x)
        time = self.time(t)
        latent, skips = cast(tuple[Tensor, Skips], self.encoder(x, time))
        return cast(Tensor, self.decoder(latent + self.core(latent, time), skips, time))

    def _check(self, x: Tensor) -> None:
        stride_px = self.config.total_stride_px
        height, width = x.shape[-2:]
        if height % stride_px or width % stride_px:
            raise ValueError(f"image sides {height}x{width} must be multiples of {stride_px}, the network's total stride")


def build_denoiser(config: NetworkConfig, *, seed: int | None = None) -> Denoiser:
    """Build the network that `config` describes, with initial weights that are a function of `seed` if one is given."""
    if seed is None:
        return Denoiser(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(config)


def num_parameters(module: nn.Module) -> int:
    """Count the trainable parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
