"""The normalisation of single channels on a CPU: equal to torch's in values and gradients, and used where torch's is slow."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.denoiser import build_denoiser
from model.instance_norm import is_faster, normalise_modulate_silu
from pipeline.config import load_config

EPS = 1e-6


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def by_torch(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normalised = torch.group_norm(x, x.shape[1], None, None, EPS)  # `F.group_norm` refuses a single value
    return F.silu(normalised * scale[:, :, None, None] + shift[:, :, None, None])


def drawn(shape: tuple[int, int, int, int], *, rows: int, mean: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype) * 2 + mean
    scale, shift = (torch.randn(rows, shape[1], generator=generator, dtype=dtype) for _ in range(2))
    return channels_last(x).requires_grad_(), scale.requires_grad_(), shift.requires_grad_()


@pytest.mark.parametrize("shape", [(3, 8, 6, 4), (1, 4, 1, 1), (2, 5, 1, 7)])
@pytest.mark.parametrize("by_image", [True, False])
def test_values_and_gradients_are_torchs(shape: tuple[int, int, int, int], *, by_image: bool) -> None:
    inputs = drawn(shape, rows=shape[0] if by_image else 1, mean=0.7, dtype=torch.float64)
    assert is_faster(inputs[0], shape[1])
    ours, theirs = normalise_modulate_silu(*inputs, EPS), by_torch(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    x = inputs[0].detach().clone()
    with torch.no_grad():
        assert torch.equal(normalise_modulate_silu(*inputs, EPS), ours), "in fewer tensors where no gradient is needed"
    assert torch.equal(inputs[0], x)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = zip(torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_a_channel_far_from_zero_loses_no_more_digits_than_with_torch() -> None:
    x, scale, shift = drawn((2, 8, 16, 16), rows=2, mean=1000.0, dtype=torch.float32)
    exact = by_torch(x.double(), scale.double(), shift.double())
    ours, theirs = ((f - exact).abs().max() for f in (normalise_modulate_silu(x, scale, shift, EPS), by_torch(x, scale, shift)))
    assert ours <= 2 * theirs


class GroupNorms(TorchDispatchMode):
    """Counts torch's group normalisations by the number of channels in a group."""

    def __init__(self) -> None:
        super().__init__()
        self.by_channels = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_group_norm.default:
            self.by_channels[args[4] // args[6]] += 1
        return func(*args, **(kwargs or {}))


def test_demo_uses_it_where_a_group_is_one_channel_with_the_same_numbers() -> None:
    config = load_config("demo").network
    network = build_denoiser(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # the layers that start at zero hide the others
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    x, t = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([100.0, 800.0])
    with GroupNorms() as plain, torch.no_grad():
        expected = network(x, t)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with GroupNorms() as fast, torch.no_grad():
        output = network(channels_last(x), t)
    assert plain.by_channels.pop(1) > 0
    assert fast.by_channels == plain.by_channels
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_torchs_own_is_used_elsewhere() -> None:
    x = channels_last(torch.zeros(2, 8, 4, 4))
    assert is_faster(x, 8)
    assert not is_faster(x, 4)
    assert not is_faster(x.contiguous(), 8)
    assert not is_faster(x.bfloat16(), 8)
    assert not is_faster(x.to("meta"), 8)
