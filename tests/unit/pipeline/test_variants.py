"""Settings of one variant: refused where another is chosen, dropped where a later layer chooses another."""

import json
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from celebdit_testing.recipes import dataset_manifest

from components.errors import BadInput
from components.train.spec import TrainSpec
from components.train.train import read_recipe
from model.config import ModelSpec
from pipeline.config import load_config, section_kinds
from pipeline.variants import VARIANTS

STRAYS = [
    ("network.codec 'residual'", ["network.codec=plain", "network.channels=[]", "network.res_blocks=[]"], "network.stem_px=4"),
    ("network.codec 'residual' or 'plain'", ["network.codec=seed_compat"], "network.block=dit"),
    ("network.res_norm 'group'", ["network.res_norm=layer"], "network.group_channels=4"),
    (
        "network.codec 'residual'",
        ["network.codec=plain", "network.channels=[]", "network.res_blocks=[]"],
        "network.codec_dropout=0.1",
    ),
    ("diffusion.weighting 'min_snr'", [], "diffusion.min_snr_gamma=3.0"),
    ("diffusion.weighting 'sigmoid'", [], "diffusion.sigmoid_bias=1.0"),
    ("diffusion.weighting 'v'", ["diffusion.weighting=min_snr"], "diffusion.sigma_floor=0.1"),
    ("diffusion.times 'logit_normal'", ["diffusion.times=uniform"], "diffusion.logit_std=0.5"),
    ("optimizer.schedule 'cosine' or 'inverse_sqrt'", [], "optimizer.decay_steps=10"),
    ("optimizer.schedule 'cosine'", [], "optimizer.lr_floor=1e-5"),
    ("optimizer.schedule 'cosine'", ["optimizer.schedule=inverse_sqrt", "optimizer.decay_steps=100"], "optimizer.lr_floor=1e-5"),
    ("training.score_every_steps set", [], "training.score_images=100"),
    ("training.score_every_steps set", [], 'training.score_metrics=["frechet"]'),
    ("sampling.sampler 'ddim'", ["sampling.sampler=heun"], "sampling.eta=0.5"),
    ("diffusion.path 'vp_linear' or 'vp_cosine' or 'vp_zero_snr'", [], "sampling.spacing=trailing"),
    ("evaluation.metrics 'kid'", [], "evaluation.kid_subsets=7"),
    ("evaluation.memorisation true", ["evaluation.memorisation=false"], "evaluation.memorised_below=0.4"),
    ("gate.no_worse_than_champion true", ["gate.no_worse_than_champion=false"], "gate.tolerance=0.1"),
]


@pytest.mark.parametrize(("condition", "others", "stray"), STRAYS)
def test_a_setting_of_another_variant_is_refused(condition: str, others: list[str], stray: str) -> None:
    load_config("smoke", others)
    with pytest.raises(BadInput) as raised:
        load_config("smoke", [*others, stray])
    setting, choice = stray.partition("=")[0], condition.partition(" ")[0]
    assert re.fullmatch(rf"{setting} \S+ belongs to {condition}, and {choice} is .*: leave it out", raised.value.message)


def test_a_setting_of_another_variant_may_have_its_default() -> None:
    overrides = ["diffusion.min_snr_gamma=5.0", "optimizer.lr_floor=0.0", "sampling.eta=0.0", "sampling.spacing=linspace"]
    assert load_config("smoke", overrides).digest() == load_config("smoke").digest()


@pytest.mark.parametrize(
    ("preset", "overrides", "dropped"),
    [
        ("demo", ["optimizer.schedule=constant"], [("optimizer", "decay_steps", None), ("optimizer", "lr_floor", 0.0)]),
        ("demo", ["diffusion.times=uniform"], [("diffusion", "logit_mean", 0.8), ("diffusion", "logit_std", 0.8)]),
        ("demo", ["network.codec=plain"], [("network", "channels", ()), ("network", "res_blocks", ())]),
        ("demo", ['evaluation.metrics=["frechet"]', "gate.at_most={}", "gate.at_least={}"], [("evaluation", "kid_subsets", 100)]),
        ("celebahq256-s", ["evaluation.extractor=random-conv"], [("evaluation", "weights", None), ("evaluation", "weights_sha256", None)]),
    ],
)
def test_choosing_another_variant_drops_what_the_preset_set_for_the_old_one(
    preset: str, overrides: list[str], dropped: list[tuple[str, str, object]]
) -> None:
    config = load_config(preset, overrides)
    assert [(section, name, getattr(getattr(config, section), name)) for section, name, _ in dropped] == dropped


def test_what_is_set_beside_another_choice_is_not_dropped() -> None:
    with pytest.raises(BadInput, match=r"optimizer\.lr_floor 0\.001 belongs to optimizer\.schedule 'cosine'"):
        load_config("demo", ["optimizer.schedule=constant", "optimizer.lr_floor=0.001"])
    with pytest.raises(BadInput, match=r"optimizer\.lr_floor 0\.001 belongs to"):
        load_config("smoke", ["optimizer.schedule=constant", "optimizer.lr_floor=0.001"])


def test_every_setting_of_the_table_of_variants_exists() -> None:
    settings = {f"{section}.{name}": field for section, kind in section_kinds().items() for name, field in kind.model_fields.items()}
    for variant in VARIANTS:
        assert {variant.choice, *variant.settings} <= settings.keys()
        values = {None if kind is NoneType else kind for kind in get_args(settings[variant.choice].annotation)}
        assert not values or variant.property_name or set(variant.values) < values


def test_what_was_stored_with_a_stray_setting_is_still_read() -> None:
    recipe = read_recipe(
        '{"image_px":32,"codec":"plain","stem_px":4,"latent_channels":8,"width":32,"depth":1,"heads":2,"patch_px":2}',
        '{"min_snr_gamma":3.0}',
        '{"lr_floor":1e-5,"decay_steps":10}',
        '{"total_steps":10,"batch_images":8}',
        '{"eta":0.5}',
    )
    assert (recipe.network.stem_px, recipe.diffusion.min_snr_gamma, recipe.optimizer.lr_floor) == (4, 3.0, 1e-5)
    spec = {"run_key": "k", "attempt": "a", "dataset": dataset_manifest().model_dump(mode="json"), "resources": {}}
    sections = {
        name: getattr(recipe, name).model_dump(mode="json") for name in ("network", "diffusion", "optimizer", "training", "sampling")
    }
    stored = TrainSpec.parse(json.dumps({**spec, **sections}).encode(), origin="spec.json")
    assert {name: getattr(stored, name) for name in type(recipe).model_fields} == dict(recipe)
    identity = stored.identity("0" * 64)
    assert identity == recipe.identity("0" * 64)
    assert ModelSpec.from_identity(identity).diffusion.min_snr_gamma == 3.0


def test_a_file_that_chooses_another_variant_drops_the_settings_of_its_base(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('base = "demo"\n[optimizer]\nschedule = "constant"\n')
    assert load_config(str(path)).optimizer.decay_steps is None
    path.write_text('base = "demo"\n[optimizer]\nschedule = "constant"\nlr_floor = 1e-3\n')
    with pytest.raises(BadInput, match=r"optimizer\.lr_floor 0\.001 belongs to"):
        load_config(str(path))


@pytest.mark.parametrize("other", ["network.codec=plain", "network.res_norm=layer"])
def test_another_codec_or_norm_drops_the_groups_that_a_file_sets(other: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.toml"
    path.write_text('base = "demo"\n[network]\ngroup_channels = 16\ncodec_dropout = 0.1\n')
    network = load_config(path).network
    assert (network.group_channels, network.codec_dropout) == (16, 0.1)
    network = load_config(path, [other]).network
    assert (network.group_channels, network.codec_dropout) == (None, 0.0 if "plain" in other else 0.1)


@pytest.mark.parametrize(
    "others", ["score_images = 500", 'score_metrics = ["frechet"]', 'score_images = 9\nscore_metrics = ["frechet"]', ""]
)
def test_one_override_switches_the_scores_of_a_file_off(tmp_path: Path, others: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'base = "smoke"\n[training]\nscore_every_steps = 4\n{others}\n')
    assert load_config(str(path)).training.score_every_steps == 4
    assert load_config(str(path), ["training.score_every_steps="]) == load_config("smoke")
    with pytest.raises(
        BadInput, match=r"training\.score_images 7 belongs to training\.score_every_steps set, and .* is unset: leave it out"
    ):
        load_config(str(path), ["training.score_every_steps=", "training.score_images=7"])


def test_other_milestones_keep_the_other_settings_of_scores(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('base = "smoke"\n[training]\nscore_every_steps = 4\nscore_images = 9\n')
    assert load_config(str(path), ["training.score_every_steps=2"]).training.score_images == 9
