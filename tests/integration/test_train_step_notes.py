"""What the train step says before its ranks start."""

from pathlib import Path

import pytest
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import small_faces

from components.errors import TemporaryFailure
from components.features.config import FeaturesConfig
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.train.train import run


@pytest.mark.parametrize(("every", "noted"), [(7, True), (6, False), (None, False)])
def test_scores_that_never_come_are_noted_before_the_first_step(
    rclone_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, every: int | None, noted: bool
) -> None:
    context = step_context("train", tmp_path, str(StoreUri("bucket", tmp_path.name)), endpoint=rclone_endpoint)

    def launch(*_: object, **__: object) -> None:
        raise TemporaryFailure("no rank was started")

    monkeypatch.setattr("components.train.train.launch", launch)
    recipe = tiny_recipe(score_every_steps=every, **({} if every is None else {"score_images": 2}))
    with pytest.raises(TemporaryFailure, match="no rank was started"):
        run(recipe, small_faces(context), ResourcesConfig(device="cpu"), context, features=FeaturesConfig(extractor="random-conv"))
    line = "training.score_every_steps 7 is beyond training.total_steps 6: nothing is scored"
    assert (line in notes(context)) is noted


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
