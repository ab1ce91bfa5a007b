"""Forward and backward time of one compiled block of each kind of a network."""

from collections.abc import Iterable, Iterator
from unittest import mock

import torch
from torch import nn

from benchmarks.timing import seconds_per_call
from model import layers
from model.compilation import compile_network
from model.config import NetworkConfig
from model.denoiser import build_denoiser
from model.dit import Block
from model.layers import rotary_angles
from model.residual_blocks import LeanBlock, ResidualBlock

_CALLS = 8
_NamedBlock = tuple[str, nn.Module, list[object]]
"""Name, block and inputs."""


def milliseconds_of_blocks(
    network: NetworkConfig, batch_images: int, device: torch.device, *, compiled: bool, own_kernels: bool = True
) -> dict[str, float]:
    """Return the milliseconds of forward and backward pass of each kind of block on `batch_images` random images, with autocast.

    Without `own_kernels` only the finest level's and the transformer's, with the kernels that Inductor writes instead.
    """
    if own_kernels:
        return _milliseconds(_blocks(network, batch_images, device), device, compiled=compiled)
    with mock.patch.object(layers, "compiled_for_cuda", _return_false):
        blocks = list(_blocks(network, batch_images, device))
        return _milliseconds((blocks[0], blocks[-1]), device, compiled=compiled)


def _milliseconds(blocks: Iterable[_NamedBlock], device: torch.device, *, compiled: bool) -> dict[str, float]:
    times = {}
    for name, block, inputs in blocks:
        forward = compile_network(block, by_block=False) if compiled else block
        gradient = torch.randn_like(inputs[0])

        def call(forward: nn.Module = forward, inputs: list[object] = inputs, gradient: torch.Tensor = gradient) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                output = forward(*inputs)
            output.backward(gradient.to(output.dtype))

        for _ in range(2):
            call()
        times[name] = round(seconds_per_call(call, device, calls=_CALLS) * 1e3, 3)
    return times


def _return_false(_: torch.Tensor) -> bool:
    """Stand in for `layers.compiled_for_cuda`; the compiler reads it."""
    return False


def _blocks(network: NetworkConfig, batch_images: int, device: torch.device) -> Iterator[_NamedBlock]:
    modules = build_denoiser(network, seed=0).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    time = torch.randn(batch_images, network.width, device=device)
    side = network.image_px // network.stem_px
    for level, channels in enumerate(network.channels):
        block = next(part for part in modules.encoder.levels[level] if isinstance(part, ResidualBlock | LeanBlock))
        px = side >> level
        x = torch.randn(batch_images, channels, px, px, device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        yield f"{type(block).__name__} {channels} x {px} x {px}", block, [x, time]
    rows = network.image_px // network.total_stride_px
    tokens = torch.randn(batch_images, rows**2, network.width, device=device, dtype=torch.bfloat16, requires_grad=True)
    angles = rotary_angles(network.width // network.heads, rows, rows, device)
    rotation = (angles.cos(), angles.sin()) if network.block == "modern" else None
    block = next(part for part in modules.modules() if isinstance(part, Block))
    yield f"{type(block).__name__} {network.width} x {rows**2}", block, [tokens, time, rotation]
