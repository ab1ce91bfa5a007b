"""The norms of a transformer block on a CPU: every bit of torch's values and gradients, and torch's own functions elsewhere."""

from collections.abc import Callable, Sequence
from unittest.mock import Mock

import pytest
import torch
from celebdit_testing.shaken import shaken
from torch import Tensor
from torch.nn import functional as F

from model import token_norm_cpu
from model.denoiser import build_denoiser
from model.layers import rotate
from pipeline.config import load_config

EPS = 1e-6
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
HEAD_WIDTHS = pytest.mark.parametrize("width", [8, 12, 72])


def random(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def values_and_gradients(function: Callable[..., Sequence[Tensor]], values: Sequence[Tensor]) -> list[Tensor]:
    inputs = [value.clone().requires_grad_() for value in values]
    outputs = function(*inputs)
    weights = [torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


def assert_equal_bit_for_bit(own: Callable[..., Sequence[Tensor]], plain: Callable[..., Sequence[Tensor]], values: list[Tensor]) -> None:
    for one, other in zip(values_and_gradients(own, values), values_and_gradients(plain, values), strict=True):
        assert torch.equal(one, other)


@DTYPES
@HEAD_WIDTHS
def test_a_modulated_norm_beside_a_residual(width: int, dtype: torch.dtype) -> None:
    def own(x: Tensor, shift: Tensor, scale: Tensor) -> list[Tensor]:
        modulated, x = token_norm_cpu.modulate_beside(x, shift, scale, eps=EPS)
        return [x + modulated.tanh()]

    def plain(x: Tensor, shift: Tensor, scale: Tensor) -> list[Tensor]:
        return [x + (F.rms_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]).tanh()]

    assert_equal_bit_for_bit(own, plain, random((3, 5, width), (3, width), (3, width), dtype=dtype))


@DTYPES
@HEAD_WIDTHS
def test_rotated_heads(width: int, dtype: torch.dtype) -> None:
    angles = torch.linspace(0, 3, 6 * width // 2, dtype=dtype).view(6, width // 2)
    rotation = (angles.cos(), angles.sin())

    def own(qkv: Tensor, weights: Tensor) -> list[Tensor]:
        return [token_norm_cpu.rotated_heads(qkv[:, :, :2], weights, rotation, eps=EPS)]

    def plain(qkv: Tensor, weights: Tensor) -> list[Tensor]:
        normed = F.rms_norm(qkv[:, :, :2], (width,), eps=EPS) * weights
        return [rotate(normed, *(part[:, None, None] for part in rotation))]

    assert_equal_bit_for_bit(own, plain, random((2, 6, 3, 4, width), (2, 1, width), dtype=dtype))


@pytest.mark.parametrize(("images", "side_px"), [(1, 32), (2, 32), (16, 32), (3, 64)])
def test_demo_has_the_same_output_and_gradients_with_it_and_without(images: int, side_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken(build_denoiser(load_config("demo").network, seed=0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(network.parameters())
    x = torch.randn(images, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    passes: list[list[Tensor]] = []
    calls = {name: Mock(wraps=getattr(token_norm_cpu, name)) for name in ("modulate_beside", "rotated_heads")}
    for name, function in calls.items():
        monkeypatch.setattr(token_norm_cpu, name, function)
    for _ in range(2):
        output = network(x, torch.linspace(100, 800, images))
        passes.append([output, *torch.autograd.grad(output.square().sum(), parameters)])
        monkeypatch.setattr(token_norm_cpu, "is_faster", lambda x: False)
    depth = load_config("demo").network.depth
    assert {name: function.call_count for name, function in calls.items()} == {"modulate_beside": 2 * depth, "rotated_heads": depth}
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one, other)


def test_torchs_own_is_used_elsewhere() -> None:
    x = torch.zeros(2, 3, 8)
    assert token_norm_cpu.is_faster(x)
    assert not token_norm_cpu.is_faster(x.bfloat16())
    assert not token_norm_cpu.is_faster(x.to("meta"))
