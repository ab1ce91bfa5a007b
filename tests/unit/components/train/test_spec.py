"""Identity of a training run."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.recipes import tiny_recipe

from components.errors import BadInput
from components.features.config import FeaturesConfig
from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.storage.reader import StoredFolder
from components.stores.checkpoint_names import rescued_name
from components.stores.layout import RunLayout
from components.train.spec import differences, new_attempt, run_key
from components.train.train import _check
from model.config import OptimizerConfig


def key_of(**changes: Any) -> str:
    recipe = tiny_recipe(**{name: value for name, value in changes.items() if name != "lr"})
    optimizer = OptimizerConfig(lr_peak=changes.get("lr", 1e-3))
    return run_key(recipe.model_copy(update={"optimizer": optimizer}).identity("d" * 64))


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"batch_images": 16}, {"seed": 1}, {"network": {"width": 64}}])
def test_what_moves_the_numbers_makes_another_run(change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


@pytest.mark.parametrize("change", [{"total_steps": 99}, {"checkpoint_every_s": 5.0}, {"log_every_steps": 7}, {"microbatch_images": 2}])
def test_what_does_not_move_the_numbers_is_the_same_run(change: dict[str, Any]) -> None:
    assert key_of(**change) == key_of()


def test_the_run_key_is_stable_over_releases() -> None:
    assert run_key({"a": 1, "b": [1, 2]}) == "8baa73198470c7bb"


RUN = RunLayout(StoreUri("bucket", "runs/key"))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_attempts_of_one_second_sort_by_time_and_after_those_of_former_versions_in_it(tmp_path: Path) -> None:
    names = [new_attempt(RUN, StoredFolder(tmp_path)) for _ in range(200)]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    second = names[0].partition(".")[0]
    assert datetime.now(UTC).replace(tzinfo=None) >= datetime.strptime(second, "%Y%m%dT%H%M%S")
    assert f"{second}-ffffff" < names[0]


@pytest.mark.parametrize("place", ["attempts/{}/spec.json", "checkpoints/step-000000002/{}/state.json", "snapshots/step-000000002/{}/x"])
@pytest.mark.parametrize("name", ["20260101T120000-ffffff", "20260101T120000.000000-ffffff", rescued_name("20260101T120000.000000-f")])
@pytest.mark.parametrize("behind_s", [0, 3600, 10 * 365 * 86400])
def test_an_attempt_after_the_clock_was_set_back_sorts_after_the_earlier_one(tmp_path: Path, place: str, name: str, behind_s: int) -> None:
    path = tmp_path / "bucket/runs/key" / place.format(name)
    path.parent.mkdir(parents=True)
    path.touch()
    later = new_attempt(RUN, StoredFolder(tmp_path), clock=lambda: NOON - timedelta(seconds=behind_s))
    assert later > name
    (path.parents[1] / later).mkdir()
    (path.parents[1] / later / path.name).touch()
    assert new_attempt(RUN, StoredFolder(tmp_path), clock=lambda: NOON - timedelta(seconds=behind_s)) > later


def test_a_store_in_a_folder_named_like_an_attempt_does_not_hide_the_attempts(tmp_path: Path) -> None:
    run = RunLayout(StoreUri("bucket", "team/20260101T110000-trial/runs/key"))
    earlier = tmp_path / "bucket/team/20260101T110000-trial/runs/key/attempts/20260101T130000.000000-ffffff/spec.json"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert new_attempt(run, StoredFolder(tmp_path), clock=lambda: NOON) > earlier.parent.name


@pytest.mark.parametrize("name", ["99991231T235959.999999-a", "20261399T000000-a", "a1"])
def test_a_name_that_no_time_follows_does_not_stop_an_attempt(tmp_path: Path, name: str) -> None:
    (tmp_path / "bucket/runs/key/attempts" / name).mkdir(parents=True)
    (tmp_path / "bucket/runs/key/attempts" / name / "spec.json").touch()
    assert new_attempt(RUN, StoredFolder(tmp_path), clock=lambda: NOON).startswith("20260101T120000.000000-")


def test_differences_are_listed_field_by_field() -> None:
    saved = {"network": {"width": 128, "depth": 4}, "seed": 1}
    expected = {"network": {"width": 256, "depth": 4}, "seed": 1, "extra": True}
    assert differences(saved, expected) == ["extra: absent -> True", "network.width: 128 -> 256"]
    assert differences(saved, saved) == []


@pytest.mark.parametrize(("num_images", "refused"), [(0, True), (1, True), (2, False)])
def test_a_dataset_that_cannot_be_evaluated_is_not_trained_on(num_images: int, refused: bool) -> None:
    recipe = tiny_recipe()
    dataset = DatasetManifest.model_construct(num_images=num_images, image_px=recipe.network.image_px)
    with pytest.raises(BadInput, match="at least 2 are needed") if refused else nullcontext():
        _check(recipe, dataset, ResourcesConfig(), None)


@pytest.mark.parametrize(
    ("scores", "refused"),
    [
        ({"score_every_steps": 2, "score_images": 12}, None),
        ({"score_every_steps": 2, "score_images": 13}, 13),
        ({"score_every_steps": 2}, 2000),
        ({"score_every_steps": 700, "score_images": 2000}, 2000),
        ({}, None),
    ],
)
def test_scores_of_more_images_than_the_dataset_has_are_refused_before_the_ranks_start(scores: dict[str, int], refused: int | None) -> None:
    recipe = tiny_recipe(**scores)
    dataset = DatasetManifest.model_construct(num_images=12, image_px=recipe.network.image_px)
    message = rf"training\.score_images {refused}: samples are compared with as many training images, and there are 12"
    with pytest.raises(BadInput, match=message) if refused else nullcontext():
        _check(recipe, dataset, ResourcesConfig(), FeaturesConfig(extractor="random-conv"))
