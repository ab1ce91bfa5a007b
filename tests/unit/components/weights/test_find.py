"""Which of a checkpoint's averages is drawn from when none is named."""

import shutil
from pathlib import Path

import pytest
import torch
from celebdit_testing.recipes import tiny_network

from components.errors import BadInput, DataRefused
from components.weights.find import find_weights
from model.checkpoint import CheckpointState, publish


def checkpoint_with(folder: Path, *groups: str) -> str:
    tensors = {group: {"weight": torch.zeros(1)} for group in groups}
    facts = {"identity": {"network": tiny_network().model_dump(mode="json"), "diffusion": {}}}
    return str(publish(CheckpointState(step=1, tensors=tensors, facts=facts), folder).directory)


@pytest.mark.parametrize(
    ("groups", "chosen"),
    [
        (("weights", "ema-0.05", "ema-0.1", "ema-classic"), "0.1"),
        (("weights", "ema-0.2", "ema-0.125"), "0.2"),
        (("weights", "ema-classic"), "classic"),
        (("weights",), "none"),
        (("ema-0.05", "ema-0.1"), "0.1"),
    ],
)
def test_the_widest_average_is_the_default(tmp_path: Path, groups: tuple[str, ...], chosen: str) -> None:
    folder = checkpoint_with(tmp_path, *groups)
    assert find_weights(folder, ema=None, context=None).ema == chosen


def test_a_folder_that_was_copied_from_object_storage_with_its_notes_is_the_same_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint_with(tmp_path, "weights")
    before = find_weights(folder, ema=None, context=None)
    for note in ("COMMIT.json", "SCORE-eval.fid_50k.json"):
        Path(folder, note).write_text("{}")
    assert find_weights(folder, ema=None, context=None) == before
    Path(folder, "other.json").write_text("{}")
    with pytest.raises(DataRefused, match=r"file other\.json is extra"):
        find_weights(folder, ema=None, context=None)


def test_a_step_that_was_copied_from_object_storage_is_found_below_its_attempt(tmp_path: Path) -> None:
    folder = Path(checkpoint_with(tmp_path, "weights"))
    copied = tmp_path / "copy" / folder.name
    shutil.copytree(folder, copied / "attempt-1")
    assert find_weights(str(copied), ema=None, context=None).digest == find_weights(str(folder), ema=None, context=None).digest
    with pytest.raises(BadInput, match="is not a checkpoint"):
        find_weights(str(tmp_path / "copy"), ema=None, context=None)


def test_an_average_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    folder = checkpoint_with(tmp_path, "weights", "ema-0.05", "ema-classic")
    assert find_weights(folder, ema="classic", context=None).ema == "classic"
    with pytest.raises(BadInput, match=r"no average '0\.3'") as refused:
        find_weights(folder, ema="0.3", context=None)
    assert refused.value.hint == "it has classic, 0.05, none"
