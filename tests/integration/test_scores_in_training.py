"""Scores during training with real servers and ranks: what MLflow gets, several ranks, stops, kills and missing weights."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing import evaluations
from celebdit_testing.injections import slow_features_of_rank_1
from celebdit_testing.ranks import Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.trainings import run_train
from celebdit_testing.waiting import wait_until

from components.errors import BadInput
from components.features.config import FeaturesConfig
from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.stores.checkpoints import CheckpointStore
from components.train.checkpointing.finished import Finished, find_finished
from components.train.spec import run_key
from model.config import Recipe
from pipeline.services import Endpoints, Services

PART = "scores"
RANDOM_CONV = FeaturesConfig(extractor="random-conv")
SCORED = {"score_every_steps": 3, "score_images": 24, "score_metrics": ("mind", "frechet")}
MIND, FRECHET = "score/mind_randconv_24", "score/fd_randconv_24"


@pytest.fixture(scope="module")
def environment(embedded: Services) -> Iterator[Endpoints]:
    with evaluations.environment_of(embedded) as endpoints:
        yield endpoints


@pytest.fixture(scope="module")
def faces(environment: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> DatasetManifest:
    return evaluations.drawn_faces(environment, tmp_path_factory.mktemp("faces"), part=PART)


def test_mlflow_has_the_scores_by_step_and_they_are_those_of_an_evaluation_of_the_same_images(
    environment: Endpoints, faces: DatasetManifest, tmp_path: Path
) -> None:
    context = evaluations.place(environment, tmp_path, part=PART, run_id="scores-1")
    recipe = tiny_recipe(**SCORED, microbatch_images=4)
    checkpoint = run_train(recipe, faces, context, features=RANDOM_CONV)

    trained = context.tracking.training_run(checkpoint.run_key)
    history = {
        key: {point.step: point.value for point in context.tracking.client.get_metric_history(trained.info.run_id, key)}
        for key in (MIND, FRECHET, "perf/score_s")
    }
    assert {key: sorted(points) for key, points in history.items()} == {key: [3, 6] for key in history}
    assert all(0 < seconds < 60 for seconds in history["perf/score_s"].values())
    assert not [key for key in trained.data.metrics if key.startswith("eval/")], "a score is no metric of the evaluation"

    protocol = evaluations.config(
        num_reference=24, reference_split="train", metrics=("frechet", "mind"), memorisation=False, champion=False, bootstrap_replicates=0
    )
    report = evaluations.run(checkpoint, faces, protocol, recipe.sampling, evaluations.resources(), "no-model", context)
    assert history[MIND][6] == pytest.approx(report.metrics["eval/mind_randconv_24"], rel=1e-3)
    assert history[FRECHET][6] == pytest.approx(report.metrics["eval/fd_randconv_24"], rel=1e-3)


def test_weights_that_are_missing_end_a_training_before_its_first_step(
    environment: Endpoints, faces: DatasetManifest, tmp_path: Path
) -> None:
    context = evaluations.place(environment, tmp_path, part=PART, run_id="scores-2")
    recipe = tiny_recipe(score_every_steps=6, score_images=24, seed=5)
    inception = FeaturesConfig(extractor="inception-v3-compat", weights_sha256="0" * 64)
    with pytest.raises(BadInput, match=r"the weights of evaluation\.weights_sha256 0+ are not in the store"):
        run_train(recipe, faces, context, features=inception)
    with pytest.raises(BadInput, match="got no features to score on"):
        run_train(recipe, faces, context)
    run = context.layout.run(run_key(recipe.identity(faces.digest)))
    assert not CheckpointStore(context.store, run.checkpoints).list_committed()
    assert not (context.run_folder(run_key(recipe.identity(faces.digest))) / "checkpoints").exists()


@pytest.fixture(scope="module")
def whole(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of two ranks that was left alone."""
    folder = tmp_path_factory.mktemp("scored")
    training = training_of(
        small_dataset(folder / "data", rclone_endpoint, StoreUri("bucket", folder.name)), folder, rclone_endpoint, "whole"
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


def another(whole: Training, name: str, *, rank_timeout_s: float = 20.0) -> Training:
    return training_of(whole.dataset, whole.folder.parent, whole.endpoint, name, rank_timeout_s=rank_timeout_s)


def test_ranks_that_are_slow_to_score_wait_for_each_other_pass_by_pass(whole: Training) -> None:
    """Rank 1 takes six seconds longer for a score, one for each pass, and no rank waits for more than four."""
    slow = another(whole, "slow", rank_timeout_s=4.0)
    with ended(slow.start(2, prelude=slow_features_of_rank_1)) as ranks:
        assert ranks.wait(180) == [0, 0], ranks.reason()
    assert slow.recorded_values(MIND) == whole.recorded_values(MIND)
    assert slow.final_digest() == whole.final_digest()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_is_ended_within_a_score_goes_on_with_every_score_once(whole: Training, number: signal.Signals) -> None:
    training = another(whole, f"ended-{number.name}")
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
        assert training.recorded_values(key) == whole.recorded_values(key), key
    assert sorted(training.recorded_values(MIND)) == [3, 6]
    assert training.final_digest() == whole.final_digest()


def test_a_stop_within_the_score_of_the_last_step_leaves_a_training_that_is_not_finished(whole: Training) -> None:
    training = another(whole, "ended-at-the-end")
    with ended(training.start(2, prelude=slow_features_of_rank_1)) as ranks:
        wait_until(lambda: scoring(training, step=6), timeout_s=90, every_s=0.01)
        ranks.signal(signal.SIGTERM)
        assert ranks.wait(90) == [75, 75], "stopped, not finished"
    assert sorted(training.recorded_values(MIND)) == [3]
    assert next(entry.step for entry in training.checkpoints.list_committed()) == 6
    assert finished(training) is None
    assert finished(training, training.recipe.model_copy(update={"training": tiny_recipe().training})) is not None, (
        "no scores are configured"
    )
    with ended(training.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    for key in (MIND, FRECHET, "train/loss"):
        assert training.recorded_values(key) == whole.recorded_values(key), key
    assert training.final_digest() == whole.final_digest()
    assert finished(training) is not None


def finished(training: Training, recipe: Recipe | None = None) -> Finished | None:
    return find_finished(training.checkpoints, recipe or training.recipe, training.dataset.digest)


def scoring(training: Training, *, step: int = 3) -> bool:
    """Return whether the score of `step` has begun."""
    events = training.folder / "events.jsonl"
    if not events.exists():
        return False
    facts = [json.loads(line)["facts"] for line in events.read_text().splitlines() if line.endswith("}")]
    return any("scoring" in str(fact.get("text")) and fact.get("done") == step for fact in facts)
