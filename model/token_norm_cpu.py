"""The norms of a modern transformer block on a CPU: the values and gradients of plain torch, in fewer passes over memory.

Promises: in float32 and float64, equal bit for bit to `F.rms_norm`, modulation and `rotate`, in values and gradients. Autograd (torch 2.15)
takes the gradient of `F.rms_norm` apart into eight operations on tensors of the size of `x`, where five do, and moves the halves of a
rotated vector by copies. See `token_norm.py` for compiled graphs on CUDA.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Tokens = Float[Tensor, "b n d"]
Heads = Float[Tensor, "b n 2 h d"]


def is_faster(x: Tensor) -> bool:
    """Return whether this module replaces plain torch for `x`."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def modulate_beside(x: Tokens, shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"], *, eps: float) -> tuple[Tokens, Tokens]:
    """Return rms_norm(x) * (1 + scale) + shift, and `x` itself, whose gradient comes first in the sum, as in autograd's."""
    return _Modulate.apply(x, shift, scale, eps)


class _Modulate(torch.autograd.Function):
    """Keeps `x`, and what is small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        inverse, gain = _inverse_of_rms(x, eps), 1 + scale[:, None]
        ctx.save_for_backward(x, inverse, gain)
        ctx.set_materialize_grads(False)
        return (x * inverse).mul_(gain).add_(shift[:, None]), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_copy: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
        x, inverse, gain = ctx.saved_tensors
        of_scale = (gradient * (x * inverse)).sum(1)
        return _gradient_of_input(gradient * gain, x, inverse, of_copy), gradient.sum(1), of_scale, None


def rotated_heads(
    queries_and_keys: Heads,
    weights: Float[Tensor, "2 1 d"],
    rotation: tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]],
    *,
    eps: float,
) -> Heads:
    """Return queries and keys, RMS-normalised, weighted and rotated by cosines and sines."""
    cos, sin = (angles[:, None, None] for angles in rotation)
    return _RotatedHeads.apply(queries_and_keys, weights, cos, sin, eps)


class _RotatedHeads(torch.autograd.Function):
    """Keeps `x`, and what is small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        inverse = _inverse_of_rms(x, eps)
        ctx.save_for_backward(x, inverse, weights, cos, sin)
        return _rotate((x * inverse).mul_(weights), cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, inverse, weights, cos, sin = ctx.saved_tensors
        of_weighted = _rotate(gradient, cos, -sin)
        # With the layout of the gradient, as autograd has it: the order of the sum depends on it.
        of_weights = (of_weighted * (x * inverse)).sum_to_size(weights.shape)
        return _gradient_of_input(of_weighted.mul_(weights), x, inverse), of_weights, None, None, None


def _inverse_of_rms(x: Float[Tensor, "*b d"], eps: float) -> Float[Tensor, "*b 1"]:
    return torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))


def _gradient_of_input(
    gradient: Float[Tensor, "*b d"], x: Float[Tensor, "*b d"], inverse: Float[Tensor, "*b 1"], beside: Float[Tensor, "*b d"] | None = None
) -> Float[Tensor, "*b d"]:
    """Return the gradient of the input `x` of a normalisation, added to `beside`; `gradient`, that of its output, is overwritten."""
    # In autograd's order: of the inverse, of the mean of squares, of the squares.
    along_itself = (gradient * x).sum(-1, keepdim=True).mul_(-0.5).mul_(inverse.pow(3)).div_(x.shape[-1]).mul_(2)
    of_x = gradient.mul_(inverse)
    if beside is not None:
        of_x.add_(beside)
    return of_x.add_(x * along_itself)


def _rotate(x: Float[Tensor, "*b d"], cos: Float[Tensor, "*angles half"], sin: Float[Tensor, "*angles half"]) -> Float[Tensor, "*b d"]:
    """Turn the pairs (x[..., i], x[..., i + d/2])."""
    rotated = x * torch.cat([cos, cos], dim=-1)
    first, second = x.chunk(2, dim=-1)
    into_first, into_second = rotated.chunk(2, dim=-1)
    into_first.sub_(second * sin)
    into_second.add_(first * sin)
    return rotated
