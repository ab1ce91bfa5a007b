"""Group norm, modulation and SiLU as sums over pixels: values and gradients are those of torch's functions."""

from types import SimpleNamespace

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from torch import Tensor
from torch.nn import functional as F

from model import channel_norm
from model.channel_norm import normalise_modulate_silu
from model.denoiser import build_denoiser

SHAPES = [(2, 6, 3, 4, 5), (1, 8, 8, 2, 2), (3, 12, 1, 1, 7), (2, 4, 2, 40, 64)]
"""Images, channels, groups, rows and columns; the last has more pixels than are summed at once."""


def composed(x: Tensor, gain: Tensor, bias: Tensor, num_groups: int) -> Tensor:
    return F.silu(F.group_norm(x, num_groups, eps=1e-6) * gain[:, :, None, None] + bias[:, :, None, None])


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, _, rows, columns = shape
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(images, channels, rows, columns, generator=generator, dtype=torch.float64) * 2 + mean
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    vectors = torch.randn(2, images, channels, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), vectors[0].requires_grad_(), vectors[1].requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_composed_functions(shape: tuple[int, ...]) -> None:
    expected_inputs, own_inputs = inputs(shape, torch.float64), inputs(shape, torch.float32)
    expected = composed(*expected_inputs, shape[2])
    own = normalise_modulate_silu(*own_inputs, num_groups=shape[2], eps=1e-6)
    torch.testing.assert_close(own, expected.float(), rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), expected_inputs)
    for one, other in zip(gradients, torch.autograd.grad((own * weights).sum(), own_inputs), strict=True):
        torch.testing.assert_close(other.double(), one, rtol=2e-4, atol=2e-4 * float(one.abs().max()))


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """The plain difference of mean square and squared mean would be off by 10 % and more at a mean of 500 deviations."""
    shape = (2, 6, 3, 32, 64)
    x, gain, bias = inputs(shape, torch.float32, mean=1000.0)
    expected = composed(x.double(), gain, bias, shape[2])
    own = normalise_modulate_silu(x, gain, bias, num_groups=shape[2], eps=1e-6)
    assert (own - expected).abs().max() < 2e-3


def test_a_network_with_it_gives_the_same_images_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken(build_denoiser(tiny_network(), seed=0), 0.05)
    torch.manual_seed(1)
    x, t = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last), torch.tensor([10.0, 800.0])

    def outputs() -> list[Tensor]:
        image = network(x, t)
        return [image.detach(), *torch.autograd.grad(image.square().sum(), list(network.parameters()))]

    expected, calls = outputs(), []

    def counted(value: Tensor) -> bool:
        calls.append(value.shape)
        return True

    monkeypatch.setattr("model.instance_norm.is_faster", lambda x, num_groups: False)
    monkeypatch.setattr(channel_norm, "is_faster", counted)
    for one, other in zip(expected, outputs(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert calls


@pytest.mark.parametrize(("device", "compiling", "expected"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)])
def test_it_is_for_compiled_graphs_on_cuda_alone(device: str, compiling: bool, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert channel_norm.is_faster(SimpleNamespace(device=torch.device(device))) is expected  # type: ignore[arg-type]
