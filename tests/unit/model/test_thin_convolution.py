"""The first and the last convolution as CUDA gets them: the numbers of the plain ones."""

import pytest
import torch
from torch import nn

from model import thin_convolution
from model.thin_convolution import convolve_few_inputs, convolve_to_image


def layer_of(inputs: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(2)
    return nn.Conv2d(inputs, outputs, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("channels", [3, 8, 12])
def test_channels_of_zeros_change_nothing(channels: int) -> None:
    layer = layer_of(channels, 5)
    x = torch.randn(2, channels, 6, 6).contiguous(memory_format=torch.channels_last)
    expected, padded = layer(x), thin_convolution._convolve_padded(layer, x)
    torch.testing.assert_close(padded, expected)
    gradients = [torch.autograd.grad(output.square().sum(), list(layer.parameters())) for output in (expected, padded)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_elsewhere_the_layer_itself_is_called() -> None:
    layer, x = layer_of(3, 5), torch.randn(1, 3, 4, 4)
    assert torch.equal(convolve_few_inputs(layer, x), layer(x))
    assert torch.equal(convolve_to_image(layer, x, halve_weight_gradient=False), layer(x))


def test_only_the_weight_gradient_of_the_output_layer_has_bfloat16_factors() -> None:
    layer = layer_of(24, 12)
    x = torch.randn(2, 24, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, own = layer(x), convolve_to_image(layer, x, halve_weight_gradient=True)
    assert torch.equal(own, expected)
    weights = torch.linspace(-1, 1, own.numel()).view_as(own)
    of_x, of_weight, of_bias = torch.autograd.grad((expected * weights).sum(), (x, layer.weight, layer.bias))
    own_x, own_weight, own_bias = torch.autograd.grad((own * weights).sum(), (x, layer.weight, layer.bias))
    torch.testing.assert_close(own_x, of_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own_bias, of_bias, rtol=1e-4, atol=1e-4)
    error = (own_weight - of_weight).norm() / of_weight.norm()
    assert 0 < error < 0.01, "bfloat16 has eight bits"
    assert own_weight.dtype == torch.float32
