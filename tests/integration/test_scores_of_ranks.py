"""Scores during training in several ranks: slow ones, stops, and kills."""

import json
import signal
from pathlib import Path

import pytest
from celebdit_testing.injections import slow_features_of_rank_1
from celebdit_testing.ranks import Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.waiting import wait_until

from components.features.config import FeaturesConfig
from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.storage import StoreUri, connect
from components.train.checkpointing.finished import Finished, find_finished
from model.config import Recipe
from model.training_config import SCORE_DUE

RANDOM_CONV = FeaturesConfig(extractor="random-conv")
SCORED = {"score_every_steps": 3, "score_images": 24, "score_metrics": ("mind", "frechet")}
MIND, FRECHET = "score/mind_randconv_24", "score/fd_randconv_24"


@pytest.fixture(scope="module")
def undisturbed(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of two ranks that was left alone."""
    folder = tmp_path_factory.mktemp("scored")
    training = training_of(
        small_dataset(folder / "data", rclone_endpoint, StoreUri("bucket", folder.name)), folder, rclone_endpoint, "undisturbed"
    )
    with ended(training.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    return training


def training_of(dataset: DatasetManifest, folder: Path, endpoint: str, name: str, *, rank_timeout_s: float = 20.0) -> Training:
    recipe = tiny_recipe(network={"dropout": 0.1}, log_every_steps=1, **SCORED, microbatch_images=2)
    resources = ResourcesConfig(device="cpu", rank_timeout_s=rank_timeout_s)
    return Training(
        folder / name, endpoint, StoreUri("bucket", folder.name) / name, recipe, dataset, features=RANDOM_CONV, resources=resources
    )


def another(undisturbed: Training, name: str, *, rank_timeout_s: float = 20.0) -> Training:
    return training_of(undisturbed.dataset, undisturbed.folder.parent, undisturbed.endpoint, name, rank_timeout_s=rank_timeout_s)


def test_ranks_that_are_slow_to_score_wait_for_each_other_pass_by_pass(undisturbed: Training) -> None:
    """Rank 1 takes six seconds longer for a score, one for each pass, and no rank waits for more than four."""
    slow = another(undisturbed, "slow", rank_timeout_s=4.0)
    with ended(slow.start(2, prelude=slow_features_of_rank_1)) as ranks:
        assert ranks.wait(180) == [0, 0], ranks.reason()
    assert slow.recorded_values(MIND) == undisturbed.recorded_values(MIND)
    assert slow.final_digest() == undisturbed.final_digest()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_is_ended_within_a_score_goes_on_with_every_score_once(undisturbed: Training, number: signal.Signals) -> None:
    training = another(undisturbed, f"ended-{number.name}")
    with ended(training.start(2, prelude=slow_features_of_rank_1)) as ranks:
        wait_until(lambda: scoring(training), timeout_s=90, every_s=0.01)
        ranks.signal(number)
        ranks.wait(90)
    assert not training.recorded_values(MIND), "it was ended within the first score"
    stored = [entry.step for entry in training.checkpoints.list_committed()]
    assert stored == ([3] if number == signal.SIGTERM else []), "a stop stores the step and what is due at it"
    with ended(training.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    for key in (MIND, FRECHET, "train/loss"):
        assert training.recorded_values(key) == undisturbed.recorded_values(key), key
    assert sorted(training.recorded_values(MIND)) == [3, 6]
    assert training.final_digest() == undisturbed.final_digest()


def test_a_stop_within_the_score_of_the_last_step_leaves_a_training_that_is_not_finished(undisturbed: Training) -> None:
    training = another(undisturbed, "ended-at-the-end")
    with ended(training.start(2, prelude=slow_features_of_rank_1)) as ranks:
        wait_until(lambda: scoring(training, step=6), timeout_s=90, every_s=0.01)
        ranks.signal(signal.SIGTERM)
        assert ranks.wait(90) == [75, 75], "stopped, not finished"
    speeds = stored_speeds(training)
    assert len(speeds) == 1, "the attempt that trained the last step is the one that can be measured"
    assert sorted(training.recorded_values(MIND)) == [3]
    assert next(entry.step for entry in training.checkpoints.list_committed()) == 6
    assert finished(training) is None
    assert finished(training, training.recipe.model_copy(update={"training": tiny_recipe().training})) is not None, (
        "no scores are configured"
    )
    with ended(training.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    for key in (MIND, FRECHET, "train/loss"):
        assert training.recorded_values(key) == undisturbed.recorded_values(key), key
    assert training.final_digest() == undisturbed.final_digest()
    assert finished(training) is not None
    assert stored_speeds(training) == speeds


def test_a_checkpoint_that_was_on_local_disk_alone_is_not_overwritten_by_that_after_its_score(undisturbed: Training) -> None:
    training = another(undisturbed, "not-uploaded")
    with ended(training.start(2, prelude=slow_features_of_rank_1)) as ranks:
        wait_until(lambda: scoring(training, step=6), timeout_s=90, every_s=0.01)
        ranks.signal(signal.SIGTERM)
        assert ranks.wait(90) == [75, 75]
    store = connect(training.endpoint, deadline_s=10.0)
    for item in store.list(training.layout.checkpoints):
        store.delete(item.uri)  # as if the upload had failed
    with ended(training.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    stored = [(entry.step, training.checkpoints.notes(entry.uri).get(SCORE_DUE)) for entry in training.checkpoints.list_committed()]
    assert stored == [(6, None), (6, True)], "newest first"
    result = finished(training)
    assert result is not None
    assert SCORE_DUE not in training.checkpoints.notes(result.uri)


def finished(training: Training, recipe: Recipe | None = None) -> Finished | None:
    return find_finished(training.checkpoints, recipe or training.recipe, training.dataset.digest)


def stored_speeds(training: Training) -> list[bytes]:
    store, folder = connect(training.endpoint, deadline_s=10.0), training.root / "speeds"
    return [store.get_bytes(item.uri) for item in store.list(folder)]


def scoring(training: Training, *, step: int = 3) -> bool:
    """Return whether the score of `step` has begun."""
    events = training.folder / "events.jsonl"
    if not events.exists():
        return False
    facts = [json.loads(line)["facts"] for line in events.read_text().splitlines() if line.endswith("}")]
    return any("scoring" in str(fact.get("text")) and fact.get("done") == step for fact in facts)
