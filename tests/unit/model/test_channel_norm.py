"""Group norm, modulation and SiLU in few passes: values and gradients are those of torch's functions."""

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="torch was installed without Triton")

from model import channel_norm, layers
from model.channel_norm import Normalisation, normalise, normalise_beside
from model.denoiser import build_denoiser

SHAPES = [(2, 6, 3, 4, 5), (1, 8, 8, 2, 2), (3, 12, 1, 1, 7), (2, 4, 2, 40, 64)]
"""Images, channels, groups, rows and columns."""


def composed(x: Tensor, gain: Tensor, bias: Tensor, offset: Tensor, num_groups: int) -> Tensor:
    normed = F.group_norm(x + offset[:, None, None], num_groups, eps=1e-6)
    return F.silu(normed * gain[:, :, None, None] + bias[:, :, None, None])


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> list[Tensor]:
    images, channels, _, rows, columns = shape
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(images, channels, rows, columns, generator=generator, dtype=torch.float64) * 2 + mean
    vectors = torch.randn(2, images, channels, generator=generator, dtype=torch.float64)
    offset = torch.randn(channels, generator=generator, dtype=torch.float64) * 3
    return [value.to(dtype).requires_grad_() for value in (x.contiguous(memory_format=torch.channels_last), *vectors, offset)]


def own(x: Tensor, gain: Tensor, bias: Tensor, offset: Tensor, num_groups: int) -> Tensor:
    return normalise(x, Normalisation(gain, bias, num_groups, 1e-6, torch.float32, offset))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_composed_functions(shape: tuple[int, ...]) -> None:
    expected_inputs, own_inputs = inputs(shape, torch.float64), inputs(shape, torch.float32)
    expected, actual = composed(*expected_inputs, shape[2]), own(*own_inputs, shape[2])
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), expected_inputs)
    for one, other in zip(gradients, torch.autograd.grad((actual * weights).sum(), own_inputs), strict=True):
        torch.testing.assert_close(other.double(), one, rtol=2e-4, atol=2e-4 * max(1e-1, float(one.abs().max())))


def test_a_copy_beside_it_carries_its_gradient_to_the_input() -> None:
    x, gain, bias, _ = inputs(SHAPES[0], torch.float32)
    output, copy = normalise_beside(x, Normalisation(gain, bias, 3, 1e-6, torch.float32))
    (of_both,) = torch.autograd.grad((output * 2 + copy * 3).sum(), [x])
    (of_one,) = torch.autograd.grad((own(x, gain, bias, torch.zeros(6), 3) * 2).sum(), [x])
    torch.testing.assert_close(of_both, of_one + 3)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """The plain difference of mean square and squared mean would be off by 10 % and more at a mean of 500 deviations."""
    shape = (2, 6, 3, 32, 64)
    x, gain, bias, offset = inputs(shape, torch.float32, mean=1000.0)
    expected = composed(x.double(), gain, bias, offset, shape[2])
    assert (own(x, gain, bias, offset, shape[2]) - expected).abs().max() < 2e-3


def test_a_variance_that_rounding_makes_negative_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for constant channels of 512 x 512 pixels whose first pixel differs: in the kernel's sums, not in those of torch."""
    x, gain, bias, offset = inputs((1, 8, 8, 4, 4), torch.float32)

    def rounded(x: Tensor) -> Tensor:
        first = torch.full((1, 8), 10.0)
        return torch.stack([first, first.square() * (1 - 1e-6)], 1)[:, None] * 16

    monkeypatch.setattr(channel_norm, "channel_moments", rounded)
    output = own(x, gain, bias, offset, 8)
    gradients = torch.autograd.grad(output.sum(), [x, gain, bias])
    assert all(bool(value.isfinite().all()) for value in (output, *gradients))


def test_a_network_with_the_functions_for_gpus_gives_the_same_images_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken(build_denoiser(tiny_network(block="modern", channels=(12, 24)), seed=0), 0.05)
    torch.manual_seed(1)
    x, t = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last), torch.tensor([10.0, 800.0])

    def outputs() -> list[Tensor]:
        image = network(x, t)
        return [image.detach(), *torch.autograd.grad(image.square().sum(), list(network.parameters()))]

    expected, kinds = outputs(), set()

    def record_dimensions(value: Tensor) -> bool:
        kinds.add(value.dim())
        return True

    monkeypatch.setattr(layers, "compiled_for_cuda", record_dimensions)
    for one, other in zip(expected, outputs(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert kinds == {3, 4}, "the transformer's functions and the codec's"
