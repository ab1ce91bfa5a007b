"""The norms of a modern transformer block, for compiled graphs on CUDA: gradients in one pass over the tokens.

Promises: equal to `F.rms_norm`, modulation and `rotate`, up to rounding, in values and gradients. The forward pass is plain torch, which
Inductor fuses with what lies around it; each gradient is an operator of `token_gradients.py`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.layers import rotate
from model.token_gradients import rms_modulate_backward, rotated_heads_backward

Tokens = Float[Tensor, "b n d"]
Heads = Float[Tensor, "b n h d"]


def modulate_beside(
    x: Tokens, shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"], *, eps: float, dtype: torch.dtype
) -> tuple[Tokens, Tokens]:
    """Return rms_norm(x) * (1 + scale) + shift in `dtype`, and `x` itself; the gradients of both are added in one pass over memory."""
    return _Modulate.apply(x, shift, scale, eps, dtype)


class _Modulate(torch.autograd.Function):
    """Keeps `x` and `scale`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        modulated = F.rms_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
        return modulated if modulated.dtype == dtype else modulated.to(dtype), x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_copy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        of_x, sums = rms_modulate_backward(x.contiguous(), gradient.contiguous(), scale.float(), ctx.eps, of_copy.contiguous())
        of_shift, of_scale = sums.sum(1).to(scale.dtype).unbind(1)
        return of_x, of_shift, of_scale, None, None


def rotated_heads(
    qkv: Float[Tensor, "b n 3 h d"],
    query_weight: Float[Tensor, " d"],
    key_weight: Float[Tensor, " d"],
    rotation: tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]],
    *,
    eps: float,
) -> tuple[Heads, Heads, Heads]:
    """Return queries and keys, RMS-normalised, weighted and rotated by cosines and sines, and the values, all in the precision of `qkv`."""
    return _RotatedHeads.apply(qkv, query_weight, key_weight, *rotation, eps)


class _RotatedHeads(torch.autograd.Function):
    """Keeps `qkv`."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = torch.stack([query_weight, key_weight])
        ctx.save_for_backward(qkv, weights, cos, sin)
        ctx.eps = eps
        normed = F.rms_norm(qkv[:, :, :2], weights.shape[-1:], eps=eps) * weights[:, None].to(qkv.dtype)
        query, key = rotate(normed, cos[:, None, None], sin[:, None, None]).to(qkv.dtype).unbind(2)
        return query, key, qkv[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor, of_value: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weights, cos, sin = ctx.saved_tensors
        gradients = (gradient.contiguous() for gradient in (of_query, of_key, of_value))
        of_qkv, sums = rotated_heads_backward(qkv.contiguous(), *gradients, weights.float(), cos.float(), sin.float(), ctx.eps)
        of_weights = sums.sum(0).to(weights.dtype)
        return of_qkv, of_weights[0], of_weights[1], None, None, None
