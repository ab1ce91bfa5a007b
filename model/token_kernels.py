"""Triton kernels of `token_gradients.py`: each program works on some tokens of one image."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

PARTS = 8
"""Of an image. With 128 images that is 1,024 programs, 8 for each multiprocessor of an H100."""
TILE_TOKENS = 2
TILE_ROWS = 32
WARPS = 4


@triton.jit
def _rms_modulate(
    x,
    gradient,
    scale,
    added,
    out,
    out_sums,
    EPS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < WIDTH
    offset = image.to(tl.int64) * TOKENS * WIDTH
    factor = 1 + tl.load(scale + image * WIDTH + channel, mask=exists, other=0.0)[None, :]
    of_shift = tl.zeros([BLOCK], tl.float32)
    of_scale = tl.zeros([BLOCK], tl.float32)
    for start in range(0, PART, TILE):
        token = part * PART + start + tl.arange(0, TILE)
        inside = (token < TOKENS)[:, None] & exists[None, :]
        index = offset + token[:, None] * WIDTH + channel[None, :]
        values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        of_output = tl.load(gradient + index, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + EPS)[:, None]
        normed = values * inverse
        of_shift += tl.sum(of_output, 0)
        of_scale += tl.sum(of_output * normed, 0)
        of_normed = of_output * factor
        along = tl.sum(of_normed * normed, 1)[:, None] / WIDTH
        result = inverse * (of_normed - normed * along) + tl.load(added + index, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)
    out_sums += (image * tl.num_programs(0) + part) * 2 * WIDTH + channel
    tl.store(out_sums, of_shift, mask=exists)
    tl.store(out_sums + WIDTH, of_scale, mask=exists)


@triton.jit
def _gradient_of_rotated(
    kind,
    qkv,
    gradient,
    weights,
    cos,
    sin,
    out,
    out_sums,
    image,
    part,
    EPS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the gradient of the queries (kind 0) or keys (1) of a part of the tokens, and the sums for their weights."""
    channel = tl.arange(0, BLOCK)
    exists = channel < HALF
    weight_1 = tl.load(weights + kind * 2 * HALF + channel, mask=exists, other=0.0)[None, :]
    weight_2 = tl.load(weights + kind * 2 * HALF + HALF + channel, mask=exists, other=0.0)[None, :]
    sum_1 = tl.zeros([TILE, BLOCK], tl.float32)
    sum_2 = tl.zeros([TILE, BLOCK], tl.float32)
    for start in range(0, PART * HEADS, TILE):
        row = part * PART * HEADS + start + tl.arange(0, TILE)
        token = row // HEADS
        inside = ((start + tl.arange(0, TILE) < PART * HEADS) & (token < TOKENS))[:, None] & exists[None, :]
        source = (image.to(tl.int64) * TOKENS * HEADS + row)[:, None] * 2 * HALF + channel[None, :]
        place = ((image.to(tl.int64) * TOKENS + token) * 3 + kind) * HEADS + row % HEADS
        place = place[:, None] * 2 * HALF + channel[None, :]
        angle = token[:, None] * HALF + channel[None, :]
        cosine = tl.load(cos + angle, mask=inside, other=0.0)
        sine = tl.load(sin + angle, mask=inside, other=0.0)
        x_1 = tl.load(qkv + place, mask=inside, other=0.0).to(tl.float32)
        x_2 = tl.load(qkv + place + HALF, mask=inside, other=0.0).to(tl.float32)
        of_turned_1 = tl.load(gradient + source, mask=inside, other=0.0).to(tl.float32)
        of_turned_2 = tl.load(gradient + source + HALF, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x_1 * x_1 + x_2 * x_2, 1) / (2 * HALF) + EPS)[:, None]
        x_1 *= inverse
        x_2 *= inverse
        turned_1 = of_turned_1 * cosine + of_turned_2 * sine
        turned_2 = of_turned_2 * cosine - of_turned_1 * sine
        sum_1 += turned_1 * x_1
        sum_2 += turned_2 * x_2
        turned_1 *= weight_1
        turned_2 *= weight_2
        along = tl.sum(turned_1 * x_1 + turned_2 * x_2, 1)[:, None] / (2 * HALF)
        tl.store(out + place, (inverse * (turned_1 - x_1 * along)).to(out.dtype.element_ty), mask=inside)
        tl.store(out + place + HALF, (inverse * (turned_2 - x_2 * along)).to(out.dtype.element_ty), mask=inside)
    out_sums += ((image * tl.num_programs(0) + part) * 2 + kind) * 2 * HALF + channel
    tl.store(out_sums, tl.sum(sum_1, 0), mask=exists)
    tl.store(out_sums + HALF, tl.sum(sum_2, 0), mask=exists)


@triton.jit
def _rotated_heads(
    qkv,
    of_query,
    of_key,
    of_value,
    weights,
    cos,
    sin,
    out,
    out_sums,
    EPS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
):
    part, image = tl.program_id(0), tl.program_id(1)
    _gradient_of_rotated(0, qkv, of_query, weights, cos, sin, out, out_sums, image, part, EPS, TOKENS, HEADS, HALF, BLOCK, PART, TILE)
    _gradient_of_rotated(1, qkv, of_key, weights, cos, sin, out, out_sums, image, part, EPS, TOKENS, HEADS, HALF, BLOCK, PART, TILE)
    channel = tl.arange(0, 2 * BLOCK)
    exists = channel < 2 * HALF
    for start in range(0, PART * HEADS, TILE):
        row = part * PART * HEADS + start + tl.arange(0, TILE)
        token = row // HEADS
        inside = ((start + tl.arange(0, TILE) < PART * HEADS) & (token < TOKENS))[:, None] & exists[None, :]
        source = (image.to(tl.int64) * TOKENS * HEADS + row)[:, None] * 2 * HALF + channel[None, :]
        place = (((image.to(tl.int64) * TOKENS + token) * 3 + 2) * HEADS + row % HEADS)[:, None] * 2 * HALF + channel[None, :]
        tl.store(out + place, tl.load(of_value + source, mask=inside, other=0.0).to(out.dtype.element_ty), mask=inside)


def launch_rms_modulate(x: Tensor, gradient: Tensor, scale: Tensor, eps: float, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients, see `token_gradients.rms_modulate_backward`."""
    images, tokens, width = x.shape
    part = -(-tokens // (PARTS * TILE_TOKENS)) * TILE_TOKENS
    grid = (-(-tokens // part), images)
    of_x = torch.empty_like(x)
    sums = torch.empty(images, grid[0], 2, width, device=x.device, dtype=torch.float32)
    constants = {"TOKENS": tokens, "WIDTH": width, "PART": part, "TILE": TILE_TOKENS, "BLOCK": triton.next_power_of_2(width)}
    wrap_triton(_rms_modulate)[grid](x, gradient, scale, added, of_x, sums, EPS=eps, **constants, num_warps=WARPS)
    return of_x, sums


def launch_rotated_heads(
    qkv: Tensor, of_query: Tensor, of_key: Tensor, of_value: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients, see `token_gradients.rotated_heads_backward`."""
    images, tokens, _, heads, width = qkv.shape
    half, part = width // 2, -(-tokens // PARTS)
    grid = (-(-tokens // part), images)
    of_qkv = torch.empty_like(qkv)
    sums = torch.empty(images * grid[0], 2, width, device=qkv.device, dtype=torch.float32)
    constants = {"TOKENS": tokens, "HEADS": heads, "HALF": half, "BLOCK": triton.next_power_of_2(half), "PART": part, "TILE": TILE_ROWS}
    arguments = (qkv, of_query, of_key, of_value, weights, cos, sin, of_qkv, sums)
    wrap_triton(_rotated_heads)[grid](*arguments, EPS=eps, **constants, num_warps=WARPS)
    return of_qkv, sums
