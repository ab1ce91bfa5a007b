"""Time on the device of each custom kernel, with the block sizes that the project uses and with others."""

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.timing import seconds_per_call, wait_for
from model.channel_sums import channel_moments, gradient_moments, modulate_silu, modulate_silu_backward
from model.config import NetworkConfig
from model.token_gradients import rms_modulate_backward, rotated_heads_backward

_CALLS = 5
_CHANNEL_VARIANTS: tuple[Mapping[str, object], ...] = (
    {},
    {"BLOCK": 32},
    {"BLOCK": 32, "TILE_ELEMENTS": 4096},
    {"TILE_ELEMENTS": 1024},
    {"TILE_ELEMENTS": 4096, "WARPS": 8},
)
_TOKEN_VARIANTS: tuple[Mapping[str, object], ...] = (
    {},
    {"PARTS": 16},
    {"TILE_TOKENS": 4, "TILE_ROWS": 64},
    {"TILE_TOKENS": 1, "TILE_ROWS": 16},
    {"TILE_TOKENS": 4, "TILE_ROWS": 64, "WARPS": 8},
)

Calls = Mapping[str, Callable[[], object]]


def milliseconds_of_kernels(network: NetworkConfig, batch_images: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each operator on tensors of the codec's two finest levels and of the transformer, for each variant."""
    times: dict[str, dict[str, float]] = {}
    for level, channels in enumerate(network.channels[:2]):
        side = (network.image_px // network.stem_px) >> level
        calls = _channel_calls(batch_images, channels, side, device)
        times |= _variants("channel_kernels", _CHANNEL_VARIANTS, calls, device, f"{channels} x {side} x {side}")
    tokens = (network.image_px // network.total_stride_px) ** 2
    calls = _token_calls(batch_images, tokens, network.heads, network.width // network.heads, device)
    return times | _variants("token_kernels", _TOKEN_VARIANTS, calls, device, f"{tokens} x {network.width}")


def _variants(
    module: str, variants: tuple[Mapping[str, object], ...], calls: Calls, device: torch.device, shape: str
) -> dict[str, dict[str, float]]:
    times = {}
    for variant in variants if device.type == "cuda" else variants[:1]:
        name = " ".join([shape, *(f"{key}={value}" for key, value in variant.items())])
        with mock.patch.multiple(f"model.{module}", **variant) if variant else mock.patch.dict({}):
            times[name] = {operator: _device_milliseconds(call, device) for operator, call in calls.items()}
    return times


def _device_milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds that the device works: a call takes the host longer than a small kernel takes the device."""
    call()
    if device.type != "cuda":
        return round(seconds_per_call(call, device, calls=_CALLS) * 1e3, 4)
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(_CALLS):
            call()
        wait_for(device)
    return round(sum(event.self_device_time_total for event in trace.key_averages()) / _CALLS / 1e3, 4)


def _channel_calls(images: int, channels: int, side: int, device: torch.device) -> Calls:
    x, gradient, added = (_random(images, channels, side, side, device=device) for _ in range(3))
    x, gradient, added = (value.contiguous(memory_format=torch.channels_last) for value in (x, gradient, added))
    scale, shift, middle, constant = (torch.randn(images, channels, device=device) for _ in range(4))
    return {
        "channel_moments": lambda: channel_moments(x),
        "modulate_silu": lambda: modulate_silu(x, scale, shift, torch.bfloat16),
        "gradient_moments": lambda: gradient_moments(x, gradient, scale, shift, middle),
        "modulate_silu_backward": lambda: modulate_silu_backward(x, gradient, scale, shift, middle, constant, added),
    }


def _token_calls(images: int, tokens: int, heads: int, head_width: int, device: torch.device) -> Calls:
    x, gradient, added = (_random(images, tokens, heads * head_width, device=device) for _ in range(3))
    scale = torch.randn(images, heads * head_width, device=device)
    qkv = _random(images, tokens, 3, heads, head_width, device=device)
    gradients = [_random(images, tokens, heads, head_width, device=device) for _ in range(3)]
    rest: tuple[Any, ...] = (torch.randn(2, head_width, device=device), *(torch.randn(2, tokens, head_width // 2, device=device)))
    return {
        "rms_modulate_backward": lambda: rms_modulate_backward(x, gradient, scale, 1e-6, added),
        "rotated_heads_backward": lambda: rotated_heads_backward(qkv, *gradients, *rest, 1e-6),
    }


def _random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)
