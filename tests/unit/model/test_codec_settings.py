"""Groups of the codec's norms and dropout between its convolutions: what the settings change, and what they leave alone."""

from collections.abc import Mapping

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from pydantic import ValidationError
from torch import nn

from model.denoiser import build_denoiser
from model.residual_blocks import LeanBlock, ResidualBlock


def test_groups_have_the_channels_that_are_asked_for() -> None:
    network = build_denoiser(tiny_network(group_channels=4), seed=0)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_channels // norm.num_groups for norm in norms} == {4}
    assert len(norms) == 9, "two in each residual block, and the one before the output"


def test_a_group_normalises_its_channels_together() -> None:
    """With groups of one channel a brighter channel looks like a darker one; within a group of four it stays brighter."""
    x = torch.randn(1, 8, 4, 4)
    brighter = x.clone()
    brighter[:, 0] += 3
    for channels, equal in ((None, True), (4, False)):
        norm = ResidualBlock(8, 16, group_channels=channels).norm_in
        assert torch.allclose(norm(x)[:, 0], norm(brighter)[:, 0], atol=1e-5) is equal


@pytest.mark.parametrize("block", [ResidualBlock, LeanBlock])
def test_dropout_acts_in_training_alone(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain, dropping = (shaken(block(8, 16, dropout=probability)) for probability in (0.0, 0.5))
    dropping.load_state_dict(plain.state_dict())
    inputs = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(dropping.eval()(*inputs), plain.eval()(*inputs))
    dropping.train()
    assert not torch.equal(dropping(*inputs), dropping(*inputs))
    mean = torch.stack([dropping(*inputs) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, plain(*inputs), atol=0.1, rtol=0.1)


def test_every_residual_block_has_the_dropout_of_the_codec() -> None:
    network = build_denoiser(tiny_network(codec_dropout=0.2), seed=0)
    assert [module.p for module in (*network.encoder.modules(), *network.decoder.modules()) if isinstance(module, nn.Dropout)] == [0.2] * 4


def test_the_settings_are_stored_by_name_only_where_they_are_chosen() -> None:
    plain = tiny_network().model_dump(mode="json")
    assert not {"group_channels", "codec_dropout"} & set(plain)
    chosen = tiny_network(group_channels=4, codec_dropout=0.1).model_dump(mode="json")
    assert (chosen["group_channels"], chosen["codec_dropout"]) == (4, 0.1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"group_channels": 3}, r"channels \[8, 16\] must be multiples of group_channels 3"),
        ({"group_channels": 16}, r"channels \[8, 16\] must be multiples of group_channels 16"),
        ({"codec_dropout": 1.0}, "less than 1"),
    ],
)
def test_what_does_not_fit_the_codec_is_refused(changes: Mapping[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        tiny_network(**changes)
