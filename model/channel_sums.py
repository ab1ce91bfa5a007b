"""The passes over all pixels that a group normalisation with modulation and SiLU needs, as operators: one Triton kernel each on CUDA.

Promises: `x` is read once by each operator, in float32 for the arithmetic; no sum depends on timing, so results are equal bit for bit in
each run; elsewhere than on CUDA the operators are plain torch functions. All tensors of images are in channels-last memory, and vectors are
(image, channel) in float32. On an H100 these kernels read sums at 1.8 to 2.5 TB/s, where those that Inductor (torch 2.11 to 2.15) writes
for the same sums read at 0.75: docs/performance.md. Needs Triton, which torch for a CPU alone lacks.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.library import triton_op

from model.channel_kernels import launch_gradient, launch_gradient_moments, launch_modulate, launch_moments

Images = Float[Tensor, "b c h w"]
Vectors = Float[Tensor, "b c"]


@triton_op("celebdit::channel_moments", mutates_args={})
def channel_moments(x: Tensor) -> Tensor:
    """Return (image, part, 2, channel): sums over a part of the pixels of x - p and its square, where p is the image's first pixel."""
    return launch_moments(x)


@channel_moments.register_kernel("cpu")
def _channel_moments(x: Tensor) -> Tensor:
    shifted = (x.float() - x[:, :, :1, :1].float()).flatten(2)
    return torch.stack([shifted.sum(2), shifted.square().sum(2)], 1)[:, None]


@triton_op("celebdit::modulate_silu", mutates_args={})
def modulate_silu(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return silu(scale * x + shift) in `dtype`."""
    return launch_modulate(x, scale, shift, dtype)


@modulate_silu.register_kernel("cpu")
def _modulate_silu(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.silu(_scale_and_shift(x, scale, shift)).to(dtype, copy=True)


@triton_op("celebdit::gradient_moments", mutates_args={})
def gradient_moments(x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, middle: Tensor) -> Tensor:
    """Return (image, part, 2, channel): sums over a part of the pixels of g and of g * (x - middle).

    g is the derivative with respect to scale * x + shift, where `gradient` is that of its SiLU.
    """
    return launch_gradient_moments(x, gradient, scale, shift, middle)


@gradient_moments.register_kernel("cpu")
def _gradient_moments(x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, middle: Tensor) -> Tensor:
    of_modulated = torch.ops.aten.silu_backward(gradient.float(), _scale_and_shift(x, scale, shift))
    weighted = of_modulated * (x.float() - middle[:, :, None, None])
    return torch.stack([of_modulated.sum((2, 3)), weighted.sum((2, 3))], 1)[:, None]


@triton_op("celebdit::modulate_silu_backward", mutates_args={})
def modulate_silu_backward(
    x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, constant: Tensor, added: Tensor | None
) -> Tensor:
    """Return scale * g + slope * x + constant, plus `added` if it is not None, in the precision of `x`; g as in `gradient_moments`."""
    return launch_gradient(x, gradient, scale, shift, slope, constant, added)


@modulate_silu_backward.register_kernel("cpu")
def _modulate_silu_backward(
    x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, constant: Tensor, added: Tensor | None
) -> Tensor:
    of_modulated = torch.ops.aten.silu_backward(gradient.float(), _scale_and_shift(x, scale, shift))
    of_x = _scale_and_shift(of_modulated, scale, constant) + x.float() * slope[:, :, None, None]
    return (of_x if added is None else of_x + added.float()).to(x.dtype)


def _scale_and_shift(x: Images, scale: Vectors, shift: Vectors) -> Images:
    return torch.addcmul(shift[:, :, None, None], x.float(), scale[:, :, None, None])
