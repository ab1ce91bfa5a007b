"""Gradients of a transformer block's norms as operators: one Triton kernel each on CUDA, which also sums those of the vectors around them.

Promises: no sum depends on timing, so results are equal bit for bit in each run; elsewhere than on CUDA the operators are plain torch
functions. Tensors are contiguous. Of the same derivatives Inductor (torch 2.11 to 2.15) makes two to three kernels each, which read the
tokens again: docs/performance.md. Needs Triton, which torch for a CPU alone lacks.
"""

import torch
from torch import Tensor
from torch.library import triton_op

from model.token_kernels import launch_rms_modulate, launch_rotated_heads


@triton_op("celebdit::rms_modulate_backward", mutates_args={})
def rms_modulate_backward(x: Tensor, gradient: Tensor, scale: Tensor, eps: float, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of y = n * (1 + scale) + shift, where n = x / sqrt(mean(x**2) + eps) for each token.

    Shapes: `x`, `gradient` and `added` (image, token, channel), `scale` (image, channel) in float32. The first result is the gradient of
    `x` plus `added`, in the precision of `x`; the second is (image, part, 2, channel): sums over a part of the tokens of the gradient
    (that of shift) and of the gradient times n (that of scale).
    """
    return launch_rms_modulate(x, gradient, scale, eps, added)


@rms_modulate_backward.register_kernel("cpu")
def _rms_modulate_backward(x: Tensor, gradient: Tensor, scale: Tensor, eps: float, added: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    normed, wide = x.float() * inverse, gradient.float()
    of_normed = wide * (1 + scale[:, None])
    of_x = inverse * (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True)) + added.float()
    return of_x.to(x.dtype), torch.stack([wide.sum(1), (wide * normed).sum(1)], 1)[:, None]


@triton_op("celebdit::rotated_heads_backward", mutates_args={})
def rotated_heads_backward(
    qkv: Tensor, of_query: Tensor, of_key: Tensor, of_value: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of queries and keys that are RMS-normalised, weighted and rotated, and of values that are not.

    Shapes: `qkv` (image, token, 3, head, width), the three gradients (image, token, head, width), `weights` (2, width) of queries and
    keys in float32, `cos` and `sin` (token, width / 2) in float32. Returns the gradient of `qkv`, and (program, 2, width): sums over some
    of the heads of the gradients of the weights.
    """
    return launch_rotated_heads(qkv, of_query, of_key, of_value, weights, cos, sin, eps)


@rotated_heads_backward.register_kernel("cpu")
def _rotated_heads_backward(
    qkv: Tensor, of_query: Tensor, of_key: Tensor, of_value: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = qkv[:, :, :2].float()
    first, second = torch.stack([of_query, of_key], 2).float().chunk(2, dim=-1)
    cos, sin = cos[:, None, None], sin[:, None, None]
    of_weighted = torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    normed = x * inverse
    of_normed = of_weighted * weights[:, None]
    of_x = inverse * (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True))
    of_qkv = torch.cat([of_x.to(qkv.dtype), of_value[:, :, None].to(qkv.dtype)], dim=2)
    return of_qkv, (of_weighted * normed).sum((0, 1, 3))[None]
