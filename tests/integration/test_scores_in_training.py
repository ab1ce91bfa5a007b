"""Scores during training with real servers: what MLflow gets, and missing weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing import evaluations
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.trainings import run_train

from components.errors import BadInput
from components.features.config import FeaturesConfig
from components.manifests import DatasetManifest
from components.stores.checkpoints import CheckpointStore
from components.train.spec import run_key
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
