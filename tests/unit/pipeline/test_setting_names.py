"""What an unknown setting was meant to be."""

import pytest

from components.errors import BadInput
from pipeline.config import load_config, section_kinds


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("training.lr", "optimizer.lr_peak"),
        ("optimizer.lr", "optimizer.lr_peak"),
        ("training.learning_rate", "optimizer.lr_peak"),
        ("training.lr_peak", "optimizer.lr_peak"),
        ("training.batch_size", "training.batch_images"),
        ("optimizer.total_steps", "training.total_steps"),
        ("training.totl_steps", "training.total_steps"),
        ("training.epochs", "training.total_steps"),
        ("network.num_layers", "network.depth"),
        ("sampling.sampler_name", "sampling.sampler"),
        ("trainig.seed", "training"),
        ("eval.num_images", "evaluation"),
        ("training.flip", "training.horizontal_flip"),
        ("optimizer.warm", "optimizer.warmup_steps"),
        ("network.widht", "network.width"),
        ("network.latent_chanels", "network.latent_channels"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(wrong: str, meant: str) -> None:
    with pytest.raises(BadInput, match="unknown key") as refused:
        load_config("smoke", [f"{wrong}=1"])
    assert refused.value.hint == f"did you mean {meant}?"


def test_where_nothing_is_near_the_section_is_listed() -> None:
    with pytest.raises(BadInput) as refused:
        load_config("smoke", ["registry.zzz=1"])
    assert refused.value.hint == "known here: model_name"


@pytest.mark.parametrize("section", sorted(section_kinds()))
def test_a_word_that_has_nothing_to_do_with_a_setting_is_no_misspelling_of_one(section: str) -> None:
    for word in ("nonsense", "banana", "temperature", "elephant", "cheese", "colour", "password", "verbose", "foo", "x"):
        with pytest.raises(BadInput) as refused:
            load_config("smoke", [f"{section}.{word}=1"])
        assert str(refused.value.hint).startswith("known here: "), word
