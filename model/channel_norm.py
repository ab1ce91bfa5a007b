"""Group normalisation, modulation and SiLU as one differentiable function of sums over pixels, for compiled graphs on CUDA.

Promises: equal to `group_norm`, modulation and `silu`, up to rounding, in values and gradients; computed in float32, as autocast does. From
`group_norm` itself Inductor (torch 2.11 to 2.15) writes kernels that read a group of three channels out of each pixel; in channels-last
memory these use a sixth of what they load. Here every kernel reads neighbouring channels. docs/performance.md has the times.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_RUN_PX = 1024
"""Pixels that are summed first, in a loop of their own. Inductor's deterministic choice of block sizes is a square of 64 channels and 64
pixels: shorter runs spend the time on the sums within a square, longer ones leave multiprocessors without work."""


def is_faster(x: Float[Tensor, "b c h w"]) -> bool:
    """Return whether `normalise_modulate_silu` replaces torch's functions for `x`."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


def normalise_modulate_silu(
    x: Float[Tensor, "b c h w"], gain: Float[Tensor, "#b c"], bias: Float[Tensor, "#b c"], *, num_groups: int, eps: float
) -> Float[Tensor, "b c h w"]:
    """Return silu(gain * (x - mean) / sqrt(variance + eps) + bias) in float32, with mean and variance of each image's group of channels."""
    batch = (len(x), x.shape[1])
    return _NormaliseModulateSilu.apply(x, gain.float().expand(batch), bias.float().expand(batch), num_groups, eps)


class _NormaliseModulateSilu(torch.autograd.Function):
    """Keeps `x`; the rest is recomputed from vectors of one number for each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        mean, inverse = _statistics(x, num_groups, eps)
        scale = gain * inverse
        ctx.save_for_backward(x, gain, bias, mean, inverse)
        ctx.num_groups = num_groups
        return F.silu(torch.addcmul(_over_pixels(bias - mean * scale), x.float(), _over_pixels(scale)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gain, bias, mean, inverse = ctx.saved_tensors
        # In memory of any other order the sums over pixels would begin with a copy in float32.
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        scale = gain * inverse
        wide = x.float()
        modulated = torch.addcmul(_over_pixels(bias - mean * scale), wide, _over_pixels(scale))
        of_modulated = torch.ops.aten.silu_backward(gradient.float(), modulated)
        of_bias = _sum_pixels(of_modulated)
        # Of the normalised channel, from the sum with `x` itself: one read of both for both sums.
        of_gain = (_sum_pixels(of_modulated * wide) - mean * of_bias) * inverse
        # The derivative of the normalisation, less the shares along the mean and along the normalised group itself.
        pixels = x.shape[2] * x.shape[3]
        along_mean = -inverse * _group_mean(gain * of_bias, ctx.num_groups) / pixels
        along_itself = -inverse.square() * _group_mean(gain * of_gain, ctx.num_groups) / pixels
        of_x = torch.addcmul(_over_pixels(along_mean - mean * along_itself), of_modulated, _over_pixels(scale))
        return (of_x + wide * _over_pixels(along_itself)).to(x.dtype), of_gain, of_bias, None, None


def _statistics(x: Float[Tensor, "b c h w"], num_groups: int, eps: float) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Return mean and 1 / sqrt(variance + eps) of the group of each channel.

    Sums are of differences to the channel's first pixel, so that a mean far from zero costs no digits.
    """
    pixels = x.shape[2] * x.shape[3]
    pivot = x[:, :, 0, 0].float()
    shifted = x.float() - _over_pixels(pivot)
    first, second = _sum_pixels(shifted) / pixels, _sum_pixels(shifted.square()) / pixels
    channel_mean = pivot + first
    mean = _group_mean(channel_mean, num_groups)
    variance = _group_mean(second - first.square() + (channel_mean - mean).square(), num_groups)
    return mean, torch.rsqrt(variance + eps)


def _sum_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    pixels = x.flatten(2)
    return pixels.unflatten(2, (-1, math.gcd(pixels.shape[2], _RUN_PX))).sum(3).sum(2)


def _group_mean(values: Float[Tensor, "b c"], num_groups: int) -> Float[Tensor, "b c"]:
    """Return the mean over the group of each channel, for each channel."""
    groups = values.unflatten(1, (num_groups, -1))
    return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


def _over_pixels(values: Float[Tensor, "b c"]) -> Float[Tensor, "b c 1 1"]:
    return values[:, :, None, None]
