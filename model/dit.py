"""The Diffusion Transformer that works on the latent: tokens in, tokens out, conditioned on time.

Promises: every block is the identity at initialisation (adaLN-Zero), and so is the core on its residual path: it starts by
returning zeros. `dit` blocks follow Peebles & Xie 2023; `modern` blocks replace their norms, positions and MLP.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model import layers, token_norm_cpu
from model.config import NetworkConfig
from model.layers import Modulation, full_precision, patchify, precision_of_products, rotary_angles, rotate, sincos_positions, unpatchify
from model.local_share import NUM_OCTAVES, gated_share

_NORM_EPS = 1e-6


def _modulate(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
    return x * (1 + scale[:, None]) + shift[:, None]


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class HeadGain(nn.Module):
    """Weights of the RMS normalisation of queries or keys, for each channel of a head."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))


class Attention(nn.Module):
    """Multi-head self-attention; with `modern`, queries and keys are RMS-normalised and rotated by their position."""

    def __init__(self, width: int, heads: int, *, modern: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.out = _linear(width, width)
        self.query_norm = HeadGain(width // heads) if modern else None
        self.key_norm = HeadGain(width // heads) if modern else None

    def forward(self, x: Float[Tensor, "b n d"], rotation: tuple[Tensor, Tensor] | None) -> Float[Tensor, "b n d"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if self.query_norm is not None and self.key_norm is not None and rotation is not None and layers.compiled_for_cuda(x):
            from model.token_norm import rotated_heads  # noqa: PLC0415 - needs Triton

            heads = rotated_heads(qkv, self.query_norm.weight, self.key_norm.weight, rotation, eps=_NORM_EPS)
            query, key, value = (head.transpose(1, 2) for head in heads)
        else:
            queries_and_keys, value = _split_values(qkv)
            value = value.transpose(1, 2)
            query, key = self._normalise_and_rotate(queries_and_keys, rotation).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))

    def _normalise_and_rotate(
        self, queries_and_keys: Float[Tensor, "b n 2 h d"], rotation: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "b n 2 h d"]:
        """Return queries and keys normalised and rotated, where this attention does so."""
        if self.query_norm is not None and self.key_norm is not None:
            # Both at once, in the order in which they lie in memory: on a GPU one kernel instead of two slow ones.
            weights = torch.stack([self.query_norm.weight, self.key_norm.weight])[:, None]
            if rotation is not None and token_norm_cpu.is_faster(queries_and_keys):
                return token_norm_cpu.rotated_heads(queries_and_keys, weights, rotation, eps=_NORM_EPS)
            queries_and_keys = F.rms_norm(queries_and_keys, weights.shape[-1:], eps=_NORM_EPS) * weights.to(queries_and_keys.dtype)
        return queries_and_keys if rotation is None else rotate(queries_and_keys, *(angles[:, None, None] for angles in rotation))


def _split_values(qkv: Float[Tensor, "b n 3 h d"]) -> tuple[Float[Tensor, "b n 2 h d"], Float[Tensor, "b n h d"]]:
    """Return queries and keys, and values."""
    if token_norm_cpu.is_faster(qkv):
        # The gradient of a split is one copy, that of two slices two tensors of zeros, two copies and a sum.
        queries_and_keys, values = qkv.split((2, 1), dim=2)
        return queries_and_keys, values.squeeze(2)
    return qkv[:, :, :2], qkv[:, :, 2]


class SwiGLU(nn.Module):
    """Gated MLP of 8/3 width, rounded up to a multiple of 64 (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // (3 * 64)) * 64
        self.gate_and_value = _linear(width, 2 * hidden, bias=False)
        self.out = _linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return cast(Tensor, self.out(F.silu(gate) * value))


class GeluMLP(nn.Module):
    """MLP of four times the width with the tanh approximation of GELU, as in Peebles & Xie 2023."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = _linear(width, 4 * width)
        self.out = _linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return cast(Tensor, self.out(F.gelu(self.hidden(x), approximate="tanh")))


class Block(nn.Module):
    """Attention, then MLP, each as x + gate * f(modulated norm of x); shift, scale and gate come from the time."""

    def __init__(self, width: int, heads: int, *, modern: bool, dropout: float) -> None:
        super().__init__()
        norm = nn.RMSNorm if modern else nn.LayerNorm
        self.attention_norm = norm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.mlp_norm = norm(width, eps=_NORM_EPS, elementwise_affine=False)
        self.attention = Attention(width, heads, modern=modern)
        self.mlp = SwiGLU(width) if modern else GeluMLP(width)
        self.modulation = Modulation(width, width, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b d"], rotation: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "b n d"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(time)
        normed, x = self._normalise_and_modulate(self.attention_norm, x, shift_a, scale_a)
        x = x + gate_a[:, None] * self.dropout(self.attention(normed, rotation))
        normed, x = self._normalise_and_modulate(self.mlp_norm, x, shift_m, scale_m)
        return cast(Tensor, x + gate_m[:, None] * self.dropout(self.mlp(normed)))

    def _normalise_and_modulate(
        self, norm: nn.Module, x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Return the modulated norm of `x`, and `x` for what is added to it."""
        if isinstance(norm, nn.RMSNorm) and layers.compiled_for_cuda(x):
            from model.token_norm import modulate_beside  # noqa: PLC0415 - needs Triton

            return modulate_beside(x, shift, scale, eps=_NORM_EPS, dtype=precision_of_products(x))
        if isinstance(norm, nn.RMSNorm) and token_norm_cpu.is_faster(x):
            return token_norm_cpu.modulate_beside(x, shift, scale, eps=_NORM_EPS)
        return _modulate(norm(x), shift, scale), x


class Core(nn.Module):
    """Patchify a latent, run the blocks, and return an update of the same shape. It is exactly zero at initialisation."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        modern = config.block == "modern"
        token_width = config.latent_channels * config.patch_px**2
        self.patch_px = config.patch_px
        self.rotary = modern
        self.head_width = config.width // config.heads
        self.embed = _linear(token_width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, modern=modern, dropout=config.dropout) for _ in range(config.depth))
        self.out_norm = (nn.RMSNorm if modern else nn.LayerNorm)(config.width, eps=_NORM_EPS, elementwise_affine=False)
        self.out_modulation = Modulation(config.width, config.width, 2)
        self.out = nn.Linear(config.width, token_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.recompute_activations = False

    def forward(self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.update(self.refine(z, time), z)

    def refine(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b d"], added: Float[Tensor, "b n d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the modulated tokens after the last block; `added` is a second embedding of them."""
        rows, columns = (side // self.patch_px for side in z.shape[-2:])
        tokens = self.embed(patchify(z, self.patch_px))
        if added is not None:
            tokens = tokens + added
        rotation = None
        if self.rotary:
            angles = rotary_angles(self.head_width, rows, columns, z.device)
            rotation = (angles.cos(), angles.sin())
        else:
            tokens = tokens + sincos_positions(tokens.shape[-1], rows, columns, z.device).to(tokens.dtype)
        for block in self.blocks:
            if self.recompute_activations and torch.is_grad_enabled():
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, time, rotation, use_reentrant=False)
            else:
                tokens = block(tokens, time, rotation)
        shift, scale = self.out_modulation(time)
        return _modulate(self.out_norm(tokens), shift, scale)

    def update(self, tokens: Float[Tensor, "b n d"], z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return what the tokens of `refine` add to the latent `z`."""
        return unpatchify(self.out(tokens), self.patch_px, *z.shape[-2:])


class LinearPath(nn.Module):
    """The ends of a plain Diffusion Transformer, beside a codec: patches of pixels to tokens, tokens to pixels, and a share of the input.

    A last norm of the codec works on each image and channel alone where it has 32 channels, and then removes the brightness and contrast
    that the decoder put there. This path carries them. The share of the noisy image is learned for each time, with `local_share` also for
    each octave and position. All starts at zero.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.patch_px = config.total_stride_px
        self.embed = _linear(3 * self.patch_px**2, config.width)
        self.out = nn.Linear(config.width, 3 * self.patch_px**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.local_share = config.local_share
        self.share = Modulation(config.width, NUM_OCTAVES if config.local_share else 1, 1)

    def tokens(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Return an embedding of the patches of `x`."""
        return cast(Tensor, self.embed(patchify(x, self.patch_px)))

    def image(
        self, tokens: Float[Tensor, "b n d"], x: Float[Tensor, "b 3 h w"], time: Float[Tensor, "b d"], gates: Float[Tensor, "b gates h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """Return what the tokens and the noisy image `x` add to the output, in float32; `gates` are of no use without `local_share`."""
        with full_precision(tokens.device):
            (share,) = self.share(time)
            drawn = unpatchify(self.out(tokens.float()), self.patch_px, *x.shape[-2:])
            return drawn + (gated_share(x, share, gates) if self.local_share else share[:, :, None, None] * x)
