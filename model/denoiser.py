"""The network as one module: encode the noisy image, refine the latent with the transformer, decode with skips.

Promises: `forward` maps (b, 3, h, w) and a timestep per image to (b, 3, h, w), and returns exactly zero at initialisation, for any image
side that is a multiple of the configured total stride. `diffusion.py` interprets the output (image, noise or velocity).
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.codec import build_codec
from model.config import NetworkConfig
from model.dit import Core, LinearPath
from model.layers import AugmentationEmbedding, TimeEmbedding
from model.seed_compat import SeedCompat


class Denoiser(nn.Module):
    """Encoder, Diffusion Transformer core on the latent, decoder with skips; end to end, without a VAE."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.time = TimeEmbedding(config.width)
        self.encoder, self.decoder = build_codec(config)
        self.core = Core(config)
        # Last, so that the initial weights of the others are those of a network without them.
        self.linear_path = LinearPath(config) if config.linear_path else None
        self.augmentation = AugmentationEmbedding(config.width) if config.augmentation > 0 else None

    @property
    def recompute_activations(self) -> bool:
        """Whether the backward pass recomputes the transformer's activations instead of storing them."""
        return self.core.recompute_activations

    @recompute_activations.setter
    def recompute_activations(self, enabled: bool) -> None:
        self.core.recompute_activations = enabled

    def encode(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b z lh lw"]:
        """Return the latent that the transformer reads: (b, latent_channels, h / stride, w / stride)."""
        self.config.check_sides(*x.shape[-2:])
        latent, _ = self.encoder(x, self.time(t))
        return cast(Tensor, latent)

    def forward(
        self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"], augmentation: Float[Tensor, "b parameters"] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """Denoise `x` at timesteps `t`, which run from 0 (clean) to 1000 (noise).

        `augmentation` has the parameters of `augmentation.py` with which the images of a training were transformed; None is all zero.

        Raises:
            ValueError: if a side is not a multiple of `config.total_stride_px`.
        """
        self.config.check_sides(*x.shape[-2:])
        time = self.time(t)
        if augmentation is not None:
            assert self.augmentation is not None, "parameters belong to a network with config.augmentation > 0"
            time = time + self.augmentation(augmentation)
        latent, skips = self.encoder(x, time)
        if self.linear_path is None:
            return cast(Tensor, self.decoder(latent + self.core(latent, time), skips, time))
        tokens = self.core.refine(latent, time, self.linear_path.tokens(x))
        decoded = self.decoder(latent + self.core.update(tokens, latent), skips, time)
        image, gates = decoded.split((3, decoded.shape[1] - 3), dim=1)
        return cast(Tensor, image + self.linear_path.image(tokens, x, time, gates))


def build_denoiser(config: NetworkConfig, *, seed: int | None = None) -> Denoiser | SeedCompat:
    """Build the network that `config` describes, with initial weights that are a function of `seed` if one is given."""
    kind = SeedCompat if config.codec == "seed_compat" else Denoiser
    if seed is None:
        return kind(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def denoiser_with(config: NetworkConfig, weights: Mapping[str, Tensor], device: torch.device) -> Denoiser | SeedCompat:
    """Return the network that `config` describes with copies of `weights`, in float32 on `device`.

    Raises:
        RuntimeError: if the weights are not those of this network.
    """
    with torch.device("meta"):
        network = build_denoiser(config)
    copies = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in weights.items()}
    # `to_empty` and a copy would do too, but of tensors without memory torch (2.15) imports its compiler for it: a second.
    network.load_state_dict(copies, strict=True, assign=True)
    return network.to(memory_format=torch.channels_last)


def num_parameters(module: nn.Module) -> int:
    """Count the trainable parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
