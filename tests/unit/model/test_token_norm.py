"""The norms of a transformer block with custom gradients: values and gradients are those of torch's functions, compiled or not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("triton", reason="torch was installed without Triton")

from model import channel_norm, channel_sums, layers, token_gradients, token_norm
from model.codec import merge_products
from model.denoiser import build_denoiser
from model.dit import Block
from model.layers import rotate
from model.residual_blocks import ResidualBlock

EPS = 1e-6
ANGLES = torch.linspace(0, 3, 24).view(6, 4)


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_equal_with_gradients(own: Callable[..., Tensor], expected: Callable[..., Tensor], values: list[Tensor]) -> None:
    results = []
    for function, dtype in ((own, torch.float32), (expected, torch.float64)):
        inputs = [value.to(dtype).requires_grad_() for value in values]
        output = function(*inputs)
        weights = torch.linspace(-1, 2, output.numel(), dtype=dtype).view_as(output)
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_a_modulated_norm_and_the_copy_beside_it() -> None:
    def own(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        modulated, copy = token_norm.modulate_beside(x, shift, scale, eps=EPS, dtype=torch.float32)
        return torch.cat([modulated * 2, copy * 3])

    def expected(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.cat([(F.rms_norm(x, (8,), eps=EPS) * (1 + scale[:, None]) + shift[:, None]) * 2, x * 3])

    assert_equal_with_gradients(own, expected, random((2, 5, 8), (2, 8), (2, 8)))


def test_rotated_heads() -> None:
    def own(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
        rotation = (ANGLES.cos(), ANGLES.sin())
        return torch.stack(token_norm.rotated_heads(qkv, query_weight, key_weight, rotation, eps=EPS))

    def expected(qkv: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
        query, key, value = qkv.unbind(2)
        cos, sin = (angles[:, None].double() for angles in (ANGLES.cos(), ANGLES.sin()))
        normed = [F.rms_norm(head, (8,), eps=EPS) * weight for head, weight in ((query, query_weight), (key, key_weight))]
        return torch.stack([*(rotate(head, cos, sin) for head in normed), value])

    assert_equal_with_gradients(own, expected, random((2, 6, 3, 2, 8), (8,), (8,)))


def test_the_layer_of_two_inputs_as_products() -> None:
    layer = nn.Conv2d(12, 5, 1)
    h, skip = (value.float() for value in random((2, 4, 3, 3), (2, 8, 3, 3)))
    torch.testing.assert_close(merge_products(layer, h, skip), layer(torch.cat([h, skip], dim=1)))
    rows = h.contiguous(memory_format=torch.channels_last)
    assert merge_products(layer, rows, skip).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["transformer", "codec"])
def test_a_block_that_is_compiled_for_a_gpu_has_the_gradients_of_one_that_is_not(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch 2.11 an output has no gradient if the last operation of the function changes nothing, like `to` the same precision."""
    for name in ("rms_modulate_backward", "rotated_heads_backward"):
        monkeypatch.setattr(token_norm, name, getattr(token_gradients, f"_{name}"))
    for name in ("channel_moments", "modulate_silu", "gradient_moments", "modulate_silu_backward"):
        monkeypatch.setattr(channel_norm, name, getattr(channel_sums, f"_{name}"))
    torch.manual_seed(0)
    block: nn.Module = Block(24, 3, modern=True, dropout=0.0) if kind == "transformer" else ResidualBlock(12, 24)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 6, 24) if kind == "transformer" else torch.randn(2, 12, 6, 8).contiguous(memory_format=torch.channels_last)
    inputs = [x.to(dtype).requires_grad_(), torch.randn(2, 24).requires_grad_()]
    rest = [(ANGLES.cos(), ANGLES.sin())] if kind == "transformer" else []

    def results(forward: nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = forward(*inputs, *rest)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), [*inputs, *block.parameters()])]

    expected = results(block)
    monkeypatch.setattr(layers, "compiled_for_cuda", lambda x: True)
    for actual in (results(block), results(torch.compile(block, backend="aot_eager", fullgraph=True))):  # type: ignore[arg-type]
        for one, other in zip(actual, expected, strict=True):
            apart = (one.float() - other.float()).norm() / other.float().norm()
            assert apart < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_network_that_is_compiled_for_a_gpu_samples_as_one_that_is_not(
    without_gradients: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("channel_moments", "modulate_silu"):
        monkeypatch.setattr(channel_norm, name, getattr(channel_sums, f"_{name}"))
    network = shaken(build_denoiser(tiny_network(block="modern", channels=(12, 24)), seed=0), 0.05).eval()
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 800.0])
    with without_gradients():
        expected = network(*inputs)
        monkeypatch.setattr(layers, "compiled_for_cuda", lambda x: True)
        actual = torch.compile(network, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "compiling", "expected"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)])
def test_kernels_of_our_own_are_for_compiled_graphs_on_cuda_alone(
    device: str, compiling: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert layers.compiled_for_cuda(SimpleNamespace(device=torch.device(device))) is expected  # type: ignore[arg-type]
