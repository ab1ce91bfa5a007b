"""Presets: each is valid, keeps its digest, and is printed as a file of the same configuration."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from components.train.train import read_features
from pipeline.commands.config import show
from pipeline.config import RunConfig, load_config, validate_config
from pipeline.config_files import preset_names


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_its_canonical_form(preset: str) -> None:
    config = load_config(preset)
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert validate_config(json.loads(config.canonical())).digest() == config.digest()
    assert set(config.sections()) == set(RunConfig.model_fields)


@pytest.mark.parametrize("preset", preset_names())
def test_what_config_show_prints_is_a_file_of_the_same_configuration(preset: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(show, [preset, 'data.licence_accepted_by=A "quoted" name', "resources.tolerations=[{key='gpu'}]"])
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.toml").write_text(result.stdout)
    again = load_config(str(tmp_path / "mine.toml"))
    assert f"digest {again.digest()}" in result.stderr
    assert again.data.licence_accepted_by == 'A "quoted" name'


DIGESTS = {
    "celebahq256-b": "3e69bb0fe28de9583f5fdac4a01c7829a5a240f5ca668353209c3f0a27cca2ea",
    "celebahq256-l": "d46fcbc1adccfb47190722f66f0b4aff5746f986967eda5b06a5ca86aa09ba5a",
    "celebahq256-s": "f1ce7651e3a6893c16880eadf4b1f7cf32eb6169c990f09f7f029bf14a8c8156",
    "celebahq256-xl": "81dc08ef2d9ef356f1bd507f7986f155ba57bf9458ef70190621693009eae081",
    "demo": "52c6299f0c6699d9b6d16dbeeae96aebeea5cd926af5355b9f3c17ad2b3caa74",
    "seed": "be3f39926bc695a5327930b257ef8c044968d219dd1d5b671febb018c55abbf3",
    "smoke": "7161762008f882bb083aced10b92097c33438dab5b8173fe94fbdf2267b92002",
}


def test_the_presets_are_what_earlier_runs_were_made_with() -> None:
    assert {preset: load_config(preset).digest() for preset in preset_names()} == DIGESTS


def test_a_setting_that_was_added_later_changes_digests_only_where_it_is_set() -> None:
    plain, changed = load_config("smoke"), load_config("smoke", ["resources.node_timeout_s=60.0"])
    assert "node_timeout_s" not in plain.sections()["resources"]
    assert json.loads(changed.sections()["resources"])["node_timeout_s"] == 60.0
    assert changed.digest() != plain.digest() == DIGESTS["smoke"]
    assert "node_timeout_s = 600.0" in plain.toml(), "shown with every default"
    assert RunConfig.model_validate_json(changed.canonical()) == changed


def test_the_train_step_gets_the_extractor_only_where_samples_are_scored() -> None:
    """Otherwise another evaluation would be another training in KFP's cache."""
    assert load_config("celebahq256-s").features() == "null"
    scored = load_config("celebahq256-s", ["training.score_every_steps=1000"])
    features = read_features(scored.features())
    assert features is not None
    assert features.model_dump() == {
        "extractor": "inception-v3-compat",
        "weights": None,
        "weights_sha256": scored.evaluation.weights_sha256,
    }
    assert load_config("celebahq256-s", ["training.score_every_steps=1000", "evaluation.num_images=7"]).features() == scored.features()
    assert read_features("null") is None
