"""Output without a norm, and a share of the input for each octave and position."""

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from pydantic import ValidationError

from model.config import NetworkConfig
from model.denoiser import build_denoiser
from model.local_share import gated_share, split_octaves


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_linear_output_keeps_how_strong_the_detail_of_each_position_is(norm: str) -> None:
    """What the decoder's last level holds is scaled; with a norm before the output its strength is lost."""
    image, scaled = {}, {}
    for linear in (False, True):
        decoder = shaken(build_denoiser(tiny_network(res_norm=norm, linear_output=linear), seed=1)).decoder
        decoded = torch.randn(1, decoder.out.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        bias = decoder.out.bias[:, None, None]
        image[linear], scaled[linear] = (decoder.out(decoder.activate(strength * decoded)) - bias for strength in (1, 3))
    torch.testing.assert_close(scaled[True], 3 * image[True])
    assert not torch.allclose(scaled[False], 3 * image[False], rtol=0.5)


def test_a_linear_output_is_stored_by_name_only_where_it_is_chosen() -> None:
    config = tiny_network(linear_output=True)
    assert build_denoiser(config).decoder.out_norm is None
    assert "linear_output" not in tiny_network().model_dump(mode="json")
    assert NetworkConfig.model_validate(config.model_dump(mode="json"), strict=False) == config


def test_octaves_sum_to_the_image_and_are_finest_first() -> None:
    images = torch.randn(2, 3, 32, 24)
    octaves = split_octaves(images)
    torch.testing.assert_close(torch.stack(octaves).sum(0), images)
    checks = torch.ones(32, 32)
    checks[::2, 1::2] = checks[1::2, ::2] = -1
    energies = [
        [float(octave.square().mean()) for octave in split_octaves(pattern[None, None])] for pattern in (checks, torch.ones(32, 32))
    ]
    assert energies[0][0] > 0.8 * sum(energies[0])
    assert energies[1] == pytest.approx([0, 0, 0, 1], abs=1e-6), "pixels at the edge are repeated, so a flat image stays flat"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_octaves_of_a_turned_image_are_turned_octaves(memory_format: torch.memory_format) -> None:
    images = torch.randn(2, 3, 32, 24).contiguous(memory_format=memory_format)
    for octave, turned in zip(split_octaves(images), split_octaves(images.mT), strict=True):
        torch.testing.assert_close(octave.mT, turned)


def test_a_gate_keeps_or_drops_an_octave_at_its_position_and_the_shares_belong_to_each_image() -> None:
    images, shares = torch.randn(2, 3, 8, 8), torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    gates = torch.zeros(2, 3, 8, 8)
    gates[:, 0, :, 4:] = -1
    share, octaves = gated_share(images, shares, gates), split_octaves(images)
    torch.testing.assert_close(share[0, :, :, :4], images[0, :, :, :4])
    torch.testing.assert_close(share[0, :, :, 4:], (images - octaves[0])[0, :, :, 4:])
    torch.testing.assert_close(share[1], 2 * octaves[3][1])


def test_a_local_share_is_stored_by_name_only_where_it_is_chosen_and_needs_the_linear_path() -> None:
    config = tiny_network(linear_path=True, local_share=True)
    assert "local_share" not in tiny_network(linear_path=True).model_dump(mode="json")
    assert NetworkConfig.model_validate(config.model_dump(mode="json"), strict=False) == config
    with pytest.raises(ValidationError, match="set both"):
        tiny_network(local_share=True)
