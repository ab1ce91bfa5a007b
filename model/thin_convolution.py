"""Convolutions with few channels on CUDA, where cuDNN's own choice of a kernel is many times slower than the memory that they read.

Promises: the same numbers as a plain convolution, up to rounding; with autocast, the weight gradient of the output layer has bfloat16
factors and float32 sums, like that of every other layer. Measured on an H100 (128 images of 128 x 128 positions, 96 channels, forward and
backward): 12 input channels 4.4 ms, padded to 16 2.2 ms; weight gradient of 12 float32 output channels 12.3 ms, in bfloat16 1.1 ms.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHANNELS_PER_LOAD = 8
"""Of bfloat16: tensor cores read 16 bytes at once."""
_CONVOLUTION = {"stride": (1, 1), "dilation": (1, 1), "transposed": False, "output_padding": (0, 0), "groups": 1}


def convolve_few_inputs(layer: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
    """Return `layer(x)`; on CUDA `x` and the weights get as many channels of zeros as make a multiple of eight."""
    return _convolve_padded(layer, x) if x.device.type == "cuda" else layer(x)


def _convolve_padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    channels = (0, 0, 0, 0, 0, -layer.in_channels % _CHANNELS_PER_LOAD)
    return F.conv2d(F.pad(x, channels), F.pad(layer.weight, channels), layer.bias, padding=layer.padding)


def convolve_to_image(layer: nn.Conv2d, x: Float[Tensor, "b c h w"], *, halve_weight_gradient: bool) -> Float[Tensor, "b k h w"]:
    """Return `layer(x)` in the precision of `x`; with `halve_weight_gradient` the backward pass computes the weights' in bfloat16."""
    if not halve_weight_gradient:
        return layer(x)
    assert layer.bias is not None, "built with a bias"
    return _OutputConvolution.apply(x, layer.weight, layer.bias, layer.padding)


class _OutputConvolution(torch.autograd.Function):
    """Keeps a bfloat16 copy of `x` for the weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x.to(torch.bfloat16), weight)
        ctx.padding, ctx.dtype = padding, x.dtype
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        # Only the shape and layout of this tensor are read.
        like_x = torch.empty_like(x, dtype=ctx.dtype)
        of_x = _convolution_backward(gradient, like_x, weight, ctx.padding, of=0)
        half = gradient.to(torch.bfloat16)
        of_weight = _convolution_backward(half, x, weight.to(torch.bfloat16), ctx.padding, of=1)
        return of_x, of_weight.to(weight.dtype), gradient.sum((0, 2, 3)), None


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], *, of: int) -> Tensor:
    """Return the gradient of the input (0) or of the weight (1)."""
    mask = [index == of for index in range(3)]
    gradients = torch.ops.aten.convolution_backward(gradient, x, weight, None, padding=padding, output_mask=mask, **_CONVOLUTION)
    return cast(Tensor, gradients[of])
