"""The network of the published checkpoint `dit_final_12_f_250.pth`, with equal outputs bit for bit.

Promises: `SeedCompat(PUBLISHED)` has exactly the 316 tensors of that file under the same names, and computes what its authors' code
computes. Peculiarities that are kept: the network predicts the clean image, not the noise; shift and scale are applied without "1 +";
positions are a one-dimensional sinusoid of the token index; and the output passes through SiLU, so no pixel is darker than about 92 of 255.
Use it to import and sample that file (`celebdit import-checkpoint`); to train a network of this shape without the peculiarities, use the
preset `seed`. Does not read files; see `components/weights/published_checkpoint.py`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import DiffusionConfig, NetworkConfig, SamplingConfig
from model.layers import patchify, unpatchify

PUBLISHED = NetworkConfig(image_px=256, codec="seed_compat", latent_channels=4, width=768, depth=12, heads=12, patch_px=4, block="dit")
"""The shape of the published file."""
OBJECTIVE = DiffusionConfig(path="vp_linear", prediction="x", weighting="none", times="uniform")
"""Its training objective: the plain error of the image, uniform timesteps 0..999, beta from 1e-4 to 0.02."""
SAMPLING = SamplingConfig(sampler="ddpm", num_steps=1000, spacing="linspace", clip_x=False, ema="none")
"""Its own sampler: ancestral through the posterior of the predicted image, all 1000 timesteps, without clipping."""


class TensorsMismatch(ValueError):
    """The tensors do not match the network; the message names the first that differ."""


def check_tensors(tensors: Mapping[str, Tensor], network: NetworkConfig = PUBLISHED) -> dict[str, Tensor]:
    """Return `tensors` in the network's order, contiguous, after checking every name, shape, type and value.

    Raises:
        TensorsMismatch: naming what is missing, unexpected, of another shape or type, or not finite.
    """
    expected = _expected_tensors(network)
    if missing := [name for name in expected if name not in tensors]:
        raise TensorsMismatch(f"{len(missing)} of {len(expected)} tensors are missing: {_first_names(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        raise TensorsMismatch(f"{len(extra)} tensors do not belong to the network: {_first_names(extra)}")
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise TensorsMismatch(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {like.dtype} {tuple(like.shape)}")
        if not torch.isfinite(tensor).all():
            raise TensorsMismatch(f"tensor {name} holds values that are not finite")
    return {name: tensors[name].detach().contiguous() for name in expected}


def size_bytes(network: NetworkConfig = PUBLISHED) -> int:
    """Return the size of the network's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _expected_tensors(network).values())


def _expected_tensors(network: NetworkConfig) -> dict[str, Tensor]:
    """Return every name with a meta tensor of its shape and type."""
    with torch.device("meta"):
        return SeedCompat(network).state_dict()


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _sinusoid(positions: Float[Tensor, " n"], width: int) -> Float[Tensor, "n d"]:
    """Return [sin, cos] of the positions; the rest of this project, like Peebles & Xie, has [cos, sin]."""
    half = width // 2
    periods = 10_000 ** (torch.arange(half, dtype=torch.float32, device=positions.device) / half)
    angles = positions[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsize = nn.Conv2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.silu(self.downsize(x))


class _Stem(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upchannels = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        return F.silu(self.upchannels(x))


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsize = nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1)
        self.downchannels = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.silu(self.downchannels(self.upsize(torch.cat([x, skip], dim=1))))


class _Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downchannels = nn.Conv2d(2 * channels, 3, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        return F.silu(self.downchannels(torch.cat([x, skip], dim=1)))


class _Patch(nn.Module):
    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(token_width, width)

    def forward(self, tokens: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        embedded = F.silu(self.proj(tokens))
        return embedded + _sinusoid(torch.arange(tokens.shape[1], device=tokens.device).float(), embedded.shape[-1]).to(embedded.dtype)


class _Unpatch(nn.Module):
    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, token_width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n p"]:
        return F.silu(self.proj(self.layernorm(tokens)))


class _Block(nn.Module):
    """Attention, then MLP; each has its own network from the time to scale and shift (1, 3) and to the gate (2, 4)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()

        def scale_and_shift() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))

        def gate() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, width), nn.SiLU())

        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.timestep1, self.timestep2 = scale_and_shift(), gate()
        self.timestep3, self.timestep4 = scale_and_shift(), gate()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.pointwise = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        scale, shift = self.timestep1(time)[:, None].chunk(2, dim=-1)
        h = self.norm1(x) * scale + shift
        x = x + self.attention(h, h, h)[0] * self.timestep2(time)[:, None]
        scale, shift = self.timestep3(time)[:, None].chunk(2, dim=-1)
        h = self.norm2(x) * scale + shift
        return x + self.pointwise(h) * self.timestep4(time)[:, None]


class SeedCompat(nn.Module):
    """The published network, for any shape of its family."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.latent_channels, config.width
        token_width = channels * config.patch_px**2
        self.d1 = _Stem(channels)
        self.d2, self.d3, self.d4 = (_Down(channels) for _ in range(3))
        self.patch = _Patch(token_width, width)
        self.ditblock = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.linear = _Unpatch(width, token_width)
        self.u1, self.u3, self.u4 = (_Up(channels) for _ in range(3))
        self.u2 = _Head(channels)
        self.recompute_activations = False

    def encode(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b z lh lw"]:
        """Return the latent that the transformer reads; it does not depend on `t`."""
        return self._encode(x)[-1]

    def _encode(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        a0 = self.d1(x)
        a1 = self.d2(a0)
        a2 = self.d3(a1)
        return [a0, a1, a2, self.d4(a2)]

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Estimate the clean images of `x` at timesteps `t` (0..999).

        Raises:
            ValueError: if a side is not a multiple of `config.total_stride_px`.
        """
        self.config.check_sides(*x.shape[-2:])
        a0, a1, a2, a3 = self._encode(x)
        time = _sinusoid(t, self.config.width).to(x.dtype)
        tokens = self.patch(patchify(a3, self.config.patch_px))
        for block in self.ditblock:
            if self.recompute_activations and torch.is_grad_enabled():
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, time, use_reentrant=False)
            else:
                tokens = block(tokens, time)
        latent = unpatchify(self.linear(tokens), self.config.patch_px, *a3.shape[-2:])
        return self.u2(self.u4(self.u3(self.u1(latent, a3), a2), a1), a0)
