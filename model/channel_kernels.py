"""Triton kernels of `channel_sums.py`, for tensors in channels-last memory on CUDA.

Each program works on a part of the pixels of one image, in tiles of pixels by all channels, so that it loads the numbers of a channel once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

TILE_ELEMENTS = 2048
WARPS = 4
PARTS = 16
"""Of an image. With 128 images that is 2,048 programs, 16 for each multiprocessor of an H100."""


@triton.jit
def _derivative(x, gradient, scale, shift):
    """Return the gradient of scale * x + shift, where `gradient` is that of its SiLU."""
    modulated = scale * x + shift
    sigmoid = tl.sigmoid(modulated)
    return gradient * sigmoid * (1 + modulated * (1 - sigmoid))


@triton.jit
def _moments(x, out, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PART_PX: tl.constexpr, TILE_PX: tl.constexpr, BLOCK: tl.constexpr):
    part, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    x += image.to(tl.int64) * PIXELS * CHANNELS
    pivot = tl.load(x + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros([TILE_PX, BLOCK], tl.float32)
    second = tl.zeros([TILE_PX, BLOCK], tl.float32)
    for start in range(0, PART_PX, TILE_PX):
        pixel = part * PART_PX + start + tl.arange(0, TILE_PX)
        inside = (pixel < PIXELS)[:, None] & exists[None, :]
        values = tl.load(x + pixel[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        shifted = tl.where(inside, values - pivot, 0.0)
        first += shifted
        second += shifted * shifted
    out += (image * tl.num_programs(0) + part) * 2 * CHANNELS + channel
    tl.store(out, tl.sum(first, 0), mask=exists)
    tl.store(out + CHANNELS, tl.sum(second, 0), mask=exists)


@triton.jit
def _modulate(
    x, scale, shift, out, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PART_PX: tl.constexpr, TILE_PX: tl.constexpr, BLOCK: tl.constexpr
):
    part, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    offset = image.to(tl.int64) * PIXELS * CHANNELS
    vector = image * CHANNELS + channel
    scales = tl.load(scale + vector, mask=exists, other=0.0)[None, :]
    shifts = tl.load(shift + vector, mask=exists, other=0.0)[None, :]
    for start in range(0, PART_PX, TILE_PX):
        pixel = part * PART_PX + start + tl.arange(0, TILE_PX)
        inside = (pixel < PIXELS)[:, None] & exists[None, :]
        index = offset + pixel[:, None] * CHANNELS + channel[None, :]
        modulated = scales * tl.load(x + index, mask=inside, other=0.0).to(tl.float32) + shifts
        tl.store(out + index, (modulated * tl.sigmoid(modulated)).to(out.dtype.element_ty), mask=inside)


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
):
    part, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    offset = image.to(tl.int64) * PIXELS * CHANNELS
    vector = image * CHANNELS + channel
    scales = tl.load(scale + vector, mask=exists, other=0.0)[None, :]
    shifts = tl.load(shift + vector, mask=exists, other=0.0)[None, :]
    middles = tl.load(middle + vector, mask=exists, other=0.0)[None, :]
    first = tl.zeros([TILE_PX, BLOCK], tl.float32)
    second = tl.zeros([TILE_PX, BLOCK], tl.float32)
    for start in range(0, PART_PX, TILE_PX):
        pixel = part * PART_PX + start + tl.arange(0, TILE_PX)
        inside = (pixel < PIXELS)[:, None] & exists[None, :]
        index = offset + pixel[:, None] * CHANNELS + channel[None, :]
        values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        # Where nothing is, the gradient is zero.
        derivative = _derivative(values, tl.load(gradient + index, mask=inside, other=0.0).to(tl.float32), scales, shifts)
        first += derivative
        second += derivative * (values - middles)
    out += (image * tl.num_programs(0) + part) * 2 * CHANNELS + channel
    tl.store(out, tl.sum(first, 0), mask=exists)
    tl.store(out + CHANNELS, tl.sum(second, 0), mask=exists)


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
):
    part, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    offset = image.to(tl.int64) * PIXELS * CHANNELS
    vector = image * CHANNELS + channel
    scales = tl.load(scale + vector, mask=exists, other=0.0)[None, :]
    shifts = tl.load(shift + vector, mask=exists, other=0.0)[None, :]
    slopes = tl.load(slope + vector, mask=exists, other=0.0)[None, :]
    constants = tl.load(constant + vector, mask=exists, other=0.0)[None, :]
    for start in range(0, PART_PX, TILE_PX):
        pixel = part * PART_PX + start + tl.arange(0, TILE_PX)
        inside = (pixel < PIXELS)[:, None] & exists[None, :]
        index = offset + pixel[:, None] * CHANNELS + channel[None, :]
        values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        derivative = _derivative(values, tl.load(gradient + index, mask=inside, other=0.0).to(tl.float32), scales, shifts)
        result = scales * derivative + slopes * values + constants
        if HAS_ADDED:
            result += tl.load(added + index, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


def _launch(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Return grid and constants of a kernel over `x`."""
    images, channels, rows, columns = x.shape
    pixels = rows * columns
    block = triton.next_power_of_2(channels)
    tile_px = max(1, TILE_ELEMENTS // block)
    part_px = -(-pixels // (PARTS * tile_px)) * tile_px
    parts = -(-pixels // part_px)
    return (parts, images), {"PIXELS": pixels, "CHANNELS": channels, "PART_PX": part_px, "TILE_PX": tile_px, "BLOCK": block, "num_warps": WARPS}


def channel_moments(x: Tensor) -> Tensor:
    """Return (image, part, 2, channel), see `channel_sums.channel_moments`."""
    grid, constants = _launch(x)
    out = torch.empty(len(x), grid[0], 2, x.shape[1], device=x.device, dtype=torch.float32)
    wrap_triton(_moments)[grid](x, out, **constants)
    return out


def modulate_silu(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return silu(scale * x + shift)."""
    grid, constants = _launch(x)
    out = torch.empty_like(x, dtype=dtype)
    wrap_triton(_modulate)[grid](x, scale, shift, out, **constants)
    return out


def gradient_moments(x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, middle: Tensor) -> Tensor:
    """Return (image, part, 2, channel), see `channel_sums.gradient_moments`."""
    grid, constants = _launch(x)
    out = torch.empty(len(x), grid[0], 2, x.shape[1], device=x.device, dtype=torch.float32)
    wrap_triton(_gradient_moments)[grid](x, gradient, scale, shift, middle, out, **constants)
    return out


def modulate_silu_backward(
    x: Tensor, gradient: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, constant: Tensor, added: Tensor | None
) -> Tensor:
    """Return the gradient of `x`, see `channel_sums.modulate_silu_backward`."""
    grid, constants = _launch(x)
    out = torch.empty_like(x)
    other = x if added is None else added
    wrap_triton(_gradient)[grid](x, gradient, scale, shift, slope, constant, other, out, HAS_ADDED=added is not None, **constants)
    return out
