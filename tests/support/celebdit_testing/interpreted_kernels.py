"""The custom Triton kernels beside the plain torch functions of the same operators, run by Triton's interpreter on a CPU.

Run it in a process of its own, `python -m celebdit_testing.interpreted_kernels`: the interpreter is chosen when Triton is imported. Prints
one JSON object for each operator, shape and precision: how far the results are apart, in shares of the largest value.
"""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from model import channel_kernels, channel_sums, token_gradients, token_kernels

IMAGES = [(2, 6, 5, 7), (2, 96, 12, 20), (1, 33, 1, 1), (3, 64, 16, 16)]
"""Images, channels, rows and columns: few channels, a number that is no power of two, one pixel, and tiles without a rest."""
TOKENS = [(2, 9, 3, 8), (1, 16, 2, 64), (2, 1, 1, 4), (1, 5, 3, 12)]
"""Images, tokens, heads and channels of a head."""


def _print_difference(operator: str, shape: tuple[int, ...], own: Tensor, plain: Tensor) -> None:
    assert own.dtype == plain.dtype
    assert own.shape == plain.shape
    difference = (own.float() - plain.float()).abs().max() / plain.float().abs().max().clamp(min=1e-30)
    print(json.dumps({"operator": operator, "shape": shape, "dtype": str(own.dtype), "difference": float(difference)}))


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def _of_images(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, gradient, added = ((_random(*shape, dtype=dtype) + 3).contiguous(memory_format=torch.channels_last) for _ in range(3))
    scale, shift, middle, constant = (_random(*shape[:2]) for _ in range(4))
    plain, own = channel_sums, channel_kernels
    _print_difference("channel_moments", shape, own.launch_moments(x).sum(1), plain._channel_moments(x).sum(1))
    for output in (torch.float32, dtype):
        _print_difference(
            "modulate_silu", shape, own.launch_modulate(x, scale, shift, output), plain._modulate_silu(x, scale, shift, output)
        )
    five = (x, gradient, scale, shift, middle)
    _print_difference("gradient_moments", shape, own.launch_gradient_moments(*five).sum(1), plain._gradient_moments(*five).sum(1))
    for other in (added, None):
        seven = (x, gradient, scale, shift, middle, constant, other)
        _print_difference("modulate_silu_backward", shape, own.launch_gradient(*seven), plain._modulate_silu_backward(*seven))


def _of_tokens(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    images, tokens, heads, width = shape
    x, gradient, added = (_random(images, tokens, heads * width, dtype=dtype) for _ in range(3))
    five = (x, gradient, _random(images, heads * width), 1e-6, added)
    for name, one, other in zip(
        ("x", "sums"), token_kernels.launch_rms_modulate(*five), token_gradients._rms_modulate_backward(*five), strict=True
    ):
        _print_difference(f"rms_modulate_backward {name}", shape, *(value if name == "x" else value.sum(1) for value in (one, other)))
    qkv = _random(images, tokens, 3, heads, width, dtype=dtype)
    gradients = [_random(images, tokens, heads, width, dtype=dtype) for _ in range(3)]
    angles = _random(tokens, width // 2)
    eight = (qkv, *gradients, _random(2, width), angles.cos(), angles.sin(), 1e-6)
    for name, one, other in zip(
        ("qkv", "sums"), token_kernels.launch_rotated_heads(*eight), token_gradients._rotated_heads_backward(*eight), strict=True
    ):
        _print_difference(f"rotated_heads_backward {name}", shape, *(value if name == "qkv" else value.sum(0) for value in (one, other)))


if __name__ == "__main__":
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in IMAGES:
            _of_images(shape, dtype)
        for shape in TOKENS:
            _of_tokens(shape, dtype)
