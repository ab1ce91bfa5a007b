"""What the train step says before its ranks start."""

from pathlib import Path

import pytest
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import small_faces

from components.errors import TemporaryFailure
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.train.train import run


@pytest.mark.parametrize("compiled", [True, False])
def test_the_minute_of_compilation_is_announced_before_it_begins(
    rclone_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    context = step_context("train", tmp_path, str(StoreUri("bucket", tmp_path.name)), endpoint=rclone_endpoint)
    seen: list[list[str]] = []

    def launch(*_: object, **__: object) -> None:
        seen.append(notes(context))
        raise TemporaryFailure("no rank was started")

    monkeypatch.setattr("components.train.train.launch", launch)
    dataset = small_faces(context)
    with pytest.raises(TemporaryFailure, match="no rank was started"):
        run(tiny_recipe(compile=compiled), dataset, ResourcesConfig(device="cpu"), context)
    (before,) = seen
    assert any("compiled" in line and "a minute" in line for line in before) is compiled
