"""What an earlier version stored is read as it was meant, and written again with the same content.

`golden/stored` holds what the smoke run of celebdit stored before recipes, model specifications and descriptions were types.
"""

import json
from pathlib import Path

import pytest
from celebdit_testing.recipes import tiny_network, tiny_recipe
from pydantic import ValidationError

from components.manifests import CheckpointManifest
from components.train.spec import TrainSpec, run_key
from model.canonical import JsonObject, canonical_json
from model.config import TRAINING_VERSION, DiffusionConfig, ModelSpec
from model.description import VersionDescription

STORED = Path(__file__).parent / "golden" / "stored"
RUN_KEY = "9de8ceb498c098a0"
STORE = "s3://celebdit/main/"


def stored(name: str) -> JsonObject:
    value: JsonObject = json.loads((STORED / name).read_text())
    return value


def with_keys(text: str) -> str:
    """Return what was stored as it is stored now: with keys relative to the store in place of absolute addresses."""
    assert STORE in text
    return text.replace(STORE, "")


def test_a_checkpoint_manifest_keeps_its_bytes_but_for_the_address_of_its_store(tmp_path: Path) -> None:
    manifest = CheckpointManifest.load(STORED / "checkpoint.json")
    manifest.dump(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == with_keys((STORED / "checkpoint.json").read_text())
    assert manifest.recipe.network.image_px == 32


def test_a_training_spec_keeps_its_content_and_the_key_of_its_run_but_for_the_version_of_the_training_maths() -> None:
    spec = TrainSpec.load(STORED / "spec.json")
    assert json.loads(spec.model_dump_json()) == json.loads(with_keys((STORED / "spec.json").read_text()))
    begun_before = stored("state.json")["identity"]
    identity = spec.identity(spec.dataset.digest)
    assert (begun_before["training_version"], identity["training_version"]) == (2, TRAINING_VERSION)
    assert {**identity, "training_version": 2} == begun_before
    assert run_key(begun_before) == spec.run_key == RUN_KEY


def test_a_generator_knows_the_model_of_a_checkpoint_from_its_state_file_and_its_manifest_alike() -> None:
    identity = stored("state.json")["identity"]
    assert ModelSpec.from_identity(identity) == CheckpointManifest.load(STORED / "checkpoint.json").recipe.model_spec


def test_an_imported_checkpoint_names_no_precision_and_has_float32() -> None:
    imported = {
        "imported": "a" * 64,
        "network": tiny_network().model_dump(mode="json"),
        "diffusion": DiffusionConfig().model_dump(mode="json"),
    }
    assert ModelSpec.from_identity(imported) == tiny_recipe().model_spec


def test_a_state_file_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="network"):
        ModelSpec.from_identity({"imported": "a" * 64})


def test_a_description_without_a_format_number_is_of_format_1(tmp_path: Path) -> None:
    description = VersionDescription.read(STORED / "description.json")
    description.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == {**stored("description.json"), "format": 1}
    assert VersionDescription.read(tmp_path / "again.json") == description
    assert description.model_spec == CheckpointManifest.load(STORED / "checkpoint.json").recipe.model_spec


def test_a_description_of_an_imported_version_had_no_protocol(tmp_path: Path) -> None:
    values = {name: value for name, value in stored("description.json").items() if name != "protocol"}
    (tmp_path / "old.json").write_text(json.dumps({**values, "dataset_digest": None, "metrics": {}}))
    assert VersionDescription.read(tmp_path / "old.json").protocol is None


@pytest.mark.parametrize("change", [{"format": 2}, {"precision": "int8"}, {"surprise": 1}])
def test_a_description_of_another_format_is_refused(tmp_path: Path, change: JsonObject) -> None:
    (tmp_path / "new.json").write_text(json.dumps({**stored("description.json"), **change}))
    with pytest.raises(ValidationError, match=next(iter(change))):
        VersionDescription.read(tmp_path / "new.json")


def test_the_identity_of_a_run_leaves_out_how_its_samples_are_drawn() -> None:
    recipe = tiny_recipe()
    other = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"num_steps": 9})})
    assert other.identity("d" * 64) == recipe.identity("d" * 64)
    assert canonical_json(recipe.identity("d" * 64)) != canonical_json(recipe.identity("e" * 64))
