"""MLflow takes the files of a model at any path."""

from pathlib import Path

import pytest
import torch
from celebdit_testing.recipes import tiny_recipe
from safetensors.torch import save_file

from components.serving import package


@pytest.mark.parametrize("name", ["a b", "100%20", "what?", "a#b", "größe", "it's; $HOME"])
def test_a_model_is_packaged_at_any_path(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "model"
    folder.parent.mkdir()
    weights = tmp_path / name / "weights.safetensors"
    save_file({"w": torch.zeros(1)}, weights)
    description = type("Description", (), {"sampling": tiny_recipe().sampling, "write": lambda self, path: path.write_text("{}")})()
    package.save_model(folder, weights=weights, description=description, card="card")
    assert (folder / "artifacts" / "weights.safetensors").read_bytes() == weights.read_bytes()
