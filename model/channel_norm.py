"""Group normalisation, modulation and SiLU as one differentiable function, in few passes over memory, for compiled graphs on CUDA.

Promises: equal to `group_norm`, modulation and `silu`, up to rounding, in values and gradients; computed in float32, as autocast does. From
`group_norm` itself Inductor (torch 2.11 to 2.15) writes kernels that read a group of three channels out of each pixel; in channels-last
memory these use a sixth of what they load. Here each pass over the pixels is an operator of `channel_sums.py`, and everything else is
computed from vectors of one number for each image and channel. docs/performance.md has the times.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.channel_sums import channel_moments, gradient_moments, modulate_silu, modulate_silu_backward

Images = Float[Tensor, "b c h w"]
Vectors = Float[Tensor, "b c"]


@dataclass(frozen=True)
class Normalisation:
    """What is done to an image's channels: silu(gain * (x + offset - mean) / sqrt(variance + eps) + bias).

    Mean and variance are those of x + offset over the group of channels; `offset` is the bias of the convolution before, which costs
    a pass over memory if the convolution adds it itself. `dtype` is the precision of the result.
    """

    gain: Float[Tensor, "#b c"]
    bias: Float[Tensor, "#b c"]
    num_groups: int
    eps: float
    dtype: torch.dtype
    offset: Float[Tensor, " c"] | None = None


def normalise(x: Images, how: Normalisation) -> Images:
    """Return `x` normalised, modulated and activated."""
    return _Normalise.apply(*_arguments(x, how), False)


def normalise_beside(x: Images, how: Normalisation) -> tuple[Images, Images]:
    """Return `x` normalised, modulated and activated, and `x` itself; the gradients of both are added in one pass over memory."""
    return _Normalise.apply(*_arguments(x, how), True)


def _arguments(x: Images, how: Normalisation) -> tuple[Any, ...]:
    batch = (len(x), x.shape[1])
    gain, bias = how.gain.float().expand(batch), how.bias.float().expand(batch)
    offset = torch.zeros_like(gain) if how.offset is None else how.offset.float().expand(batch)
    return x.contiguous(memory_format=torch.channels_last), gain, bias, offset, how.num_groups, how.eps, how.dtype


class _Normalise(torch.autograd.Function):
    """Keeps `x` and five vectors; the rest is recomputed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, offset: Tensor, num_groups: int, eps: float, dtype: torch.dtype, beside: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        pixels = x.shape[2] * x.shape[3]
        # Of differences to the channel's first pixel, so that a mean far from zero costs no digits.
        first, second = (channel_moments(x).sum(1) / pixels).unbind(1)
        own_mean = x[:, :, 0, 0].float() + first
        mean = _group_mean(own_mean + offset, num_groups)
        # Rounding could make the difference of a channel with little variance negative.
        own_variance = (second - first.square()).clamp(min=0)
        variance = _group_mean(own_variance + (own_mean + offset - mean).square(), num_groups)
        inverse = torch.rsqrt(variance + eps)
        scale, middle = gain * inverse, mean - offset
        shift = bias - middle * scale
        ctx.save_for_backward(x, gain, inverse, middle, shift, own_mean - middle)
        ctx.num_groups = num_groups
        output = modulate_silu(x, scale, shift, dtype)
        return (output, x.clone()) if beside else output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_copy: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, gain, inverse, middle, shift, own_mean = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        scale = gain * inverse
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_bias, weighted = gradient_moments(x, gradient, scale, shift, middle).sum(1).unbind(1)
        of_gain = weighted * inverse
        # The derivative of the normalisation, less the shares along the mean and along the normalised group itself.
        along_mean = -inverse * _group_mean(gain * of_bias, ctx.num_groups) / pixels
        along_itself = -inverse.square() * _group_mean(gain * of_gain, ctx.num_groups) / pixels
        added = None if of_copy is None else of_copy.contiguous(memory_format=torch.channels_last)
        constant = along_mean - middle * along_itself
        of_x = modulate_silu_backward(x, gradient, scale, shift, along_itself, constant, added)
        of_offset = scale * of_bias + pixels * (along_mean + own_mean * along_itself)
        return of_x, of_gain, of_bias, of_offset, None, None, None, None


def _group_mean(values: Vectors, num_groups: int) -> Vectors:
    """Return the mean over the group of each channel, for each channel."""
    groups = values.unflatten(1, (num_groups, -1))
    return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)
