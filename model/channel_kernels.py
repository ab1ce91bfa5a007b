"""Triton kernels of `channel_sums.py`, for tensors in channels-last memory on CUDA.

Each program works on a part of the pixels of one image and on a block of channels, in tiles of pixels by channels, so that it loads the
numbers of a channel once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

TILE_ELEMENTS = 2048
WARPS = 4
PARTS = 16
"""Of an image. With 128 images that is 2,048 programs, 16 for each multiprocessor of an H100."""
BLOCK: int | None = None
"""Channels of a program; None for all of them, rounded up to a power of two."""


@triton.jit
def _program(CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the part of an image, the image and the channels that this program works on, and which of these exist."""
    part, image = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return part, image, channel, channel < CHANNELS


@triton.jit
def _tile(start, part, image, channel, exists, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PART_PX: tl.constexpr, TILE_PX: tl.constexpr):
    """Return the places of the tile of pixels by channels that begins at pixel `start` of a part, and which of them exist."""
    pixel = part * PART_PX + start + tl.arange(0, TILE_PX)
    index = image.to(tl.int64) * PIXELS * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    return index, (pixel < PIXELS)[:, None] & exists[None, :]


@triton.jit
def _load(pointer, inside, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
    return tl.load(pointer).to(tl.float32)


@triton.jit
def _store(pointer, values, inside, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer, values.to(pointer.dtype.element_ty), mask=inside)
    else:
        tl.store(pointer, values.to(pointer.dtype.element_ty))


@triton.jit
def _derivative(x, gradient, scale, shift):
    """Return the gradient of scale * x + shift, where `gradient` is that of its SiLU."""
    modulated = scale * x + shift
    sigmoid = tl.sigmoid(modulated)
    return gradient * sigmoid * (1 + modulated * (1 - sigmoid))


@triton.jit
def _moments(
    x,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART_PX: tl.constexpr,
    TILE_PX: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    part, image, channel, exists = _program(CHANNELS, BLOCK)
    pivot = _load(x + image.to(tl.int64) * PIXELS * CHANNELS + channel, exists, MASKED)[None, :]
    first = tl.zeros([TILE_PX, BLOCK], tl.float32)
    second = tl.zeros([TILE_PX, BLOCK], tl.float32)
    for start in range(0, PART_PX, TILE_PX):
        index, inside = _tile(start, part, image, channel, exists, PIXELS, CHANNELS, PART_PX, TILE_PX)
        shifted = _load(x + index, inside, MASKED) - pivot
        if MASKED:
            shifted = tl.where(inside, shifted, 0.0)
        first += shifted
        second += shifted * shifted
    out += (image * tl.num_programs(1) + part) * 2 * CHANNELS + channel
    _store(out, tl.sum(first, 0), exists, MASKED)
    _store(out + CHANNELS, tl.sum(second, 0), exists, MASKED)


@triton.jit
def _modulate(
    x,
    scale,
    shift,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART_PX: tl.constexpr,
    TILE_PX: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    part, image, channel, exists = _program(CHANNELS, BLOCK)
    vector = image * CHANNELS + channel
    scales = _load(scale + vector, exists, MASKED)[None, :]
    shifts = _load(shift + vector, exists, MASKED)[None, :]
    for start in range(0, PART_PX, TILE_PX):
        index, inside = _tile(start, part, image, channel, exists, PIXELS, CHANNELS, PART_PX, TILE_PX)
        modulated = scales * _load(x + index, inside, MASKED) + shifts
        _store(out + index, modulated * tl.sigmoid(modulated), inside, MASKED)


@triton.jit
def _gradient_moments(
    x,
    gradient,
    scale,
    shift,
    middle,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART_PX: tl.constexpr,
    TILE_PX: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    part, image, channel, exists = _program(CHANNELS, BLOCK)
    vector = image * CHANNELS + channel
    scales = _load(scale + vector, exists, MASKED)[None, :]
    shifts = _load(shift + vector, exists, MASKED)[None, :]
    middles = _load(middle + vector, exists, MASKED)[None, :]
    first = tl.zeros([TILE_PX, BLOCK], tl.float32)
    second = tl.zeros([TILE_PX, BLOCK], tl.float32)
    for start in range(0, PART_PX, TILE_PX):
        index, inside = _tile(start, part, image, channel, exists, PIXELS, CHANNELS, PART_PX, TILE_PX)
        values = _load(x + index, inside, MASKED)
        # Where nothing is, the gradient is zero.
        derivative = _derivative(values, _load(gradient + index, inside, MASKED), scales, shifts)
        first += derivative
        second += derivative * (values - middles)
    out += (image * tl.num_programs(1) + part) * 2 * CHANNELS + channel
    _store(out, tl.sum(first, 0), exists, MASKED)
    _store(out + CHANNELS, tl.sum(second, 0), exists, MASKED)


@triton.jit
def _gradient(
    x,
    gradient,
    scale,
    shift,
    slope,
    constant,
    added,
    out,
    HAS_ADDED: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART_PX: tl.constexpr,
    TILE_PX: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    part, image, channel, exists = _program(CHANNELS, BLOCK)
    vector = image * CHANNELS + channel
    scales = _load(scale + vector, exists, MASKED)[None, :]
    shifts = _load(shift + vector, exists, MASKED)[None, :]
    slopes = _load(slope + vector, exists, MASKED)[None, :]
    constants = _load(constant + vector, exists, MASKED)[None, :]
    for start in range(0, PART_PX, TILE_PX):
        index, inside = _tile(start, part, image, channel, exists, PIXELS, CHANNELS, PART_PX, TILE_PX)
        values = _load(x + index, inside, MASKED)
        derivative = _derivative(values, _load(gradient + index, inside, MASKED), scales, shifts)
        result = scales * derivative + slopes * values + constants
        if HAS_ADDED:
            result += _load(added + index, inside, MASKED)
        _store(out + index, result, inside, MASKED)


def _launch(x: Tensor) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Return grid and constants of a kernel over `x`."""
    images, channels, rows, columns = x.shape
    pixels = rows * columns
    block = BLOCK or triton.next_power_of_2(channels)
    tile_px = max(1, TILE_ELEMENTS // block)
    part_px = -(-pixels // (PARTS * tile_px)) * tile_px
    parts = -(-pixels // part_px)
    masked = bool(channels % block or pixels % part_px)
    constants = {"PIXELS": pixels, "CHANNELS": channels, "PART_PX": part_px, "TILE_PX": tile_px, "BLOCK": block, "MASKED": masked}
    return (-(-channels // block), parts, images), {**constants, "num_warps": WARPS}


def _moments_of(x: Tensor, parts: int) -> Tensor:
    return torch.empty(len(x), parts, 2, x.shape[1], device=x.device, dtype=torch.float32)


def launch_moments(x: Tensor) -> Tensor:
    """Return (image, part, 2, channel), see `channel_sums.channel_moments`."""
    grid, constants = _launch(x)
    out = _moments_of(x, grid[1])
    wrap_triton(_moments)[grid](x, out, **constants)
    return out


def launch_modulate(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return silu(scale * x + shift)."""
    grid, constants = _launch(x)
    out = torch.empty_like(x, dtype=dtype)
    wrap_triton(_modulate)[grid](x, scale, shift, out, **constants)
    return out


def launch_gradient_moments(x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, middle: Tensor) -> Tensor:
    """Return (image, part, 2, channel), see `channel_sums.gradient_moments`."""
    grid, constants = _launch(x)
    out = _moments_of(x, grid[1])
    wrap_triton(_gradient_moments)[grid](x, gradient, scale, shift, middle, out, **constants)
    return out


def launch_gradient(
    x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, constant: Tensor, added: Tensor | None
) -> Tensor:
    """Return the gradient of `x`, see `channel_sums.modulate_silu_backward`."""
    grid, constants = _launch(x)
    out = torch.empty_like(x)
    other = x if added is None else added
    wrap_triton(_gradient)[grid](x, gradient, scale, shift, slope, constant, other, out, HAS_ADDED=added is not None, **constants)
    return out
