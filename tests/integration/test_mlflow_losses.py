"""What was deleted in MLflow is described and uploaded again, from the journal of the training."""

import json
from collections import Counter
from pathlib import Path

import pytest
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.manifests import CheckpointManifest
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.stores.checkpoint_names import COMMIT_FILE
from components.train.reporting.sync import sync
from components.train.spec import newest_spec
from model.canonical import canonical_json
from model.training_config import SCORE_DUE
from pipeline.services import Endpoints, Services

pytestmark = [pytest.mark.fault, pytest.mark.slow]

STEPS = 4
RECIPE = tiny_recipe(total_steps=STEPS, log_every_steps=1, sample_every_steps=2, seed=4242, profile_steps=1)


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    store = f"{endpoints.environment['CELEBDIT_STORE']}/{tmp_path.name}"
    return step_context("train", tmp_path, store, endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id=tmp_path.name)


def uploaded(context: StepContext, trained: CheckpointManifest) -> tuple[str, str, dict[tuple[str, int], float], list[str]]:
    """Return id, status, metrics and names of images of the training's run in MLflow."""
    run = context.tracking.training_run(trained.run_key)
    assert run is not None
    history = [point for key in run.data.metrics for point in context.tracking.client.get_metric_history(run.info.run_id, key)]
    counted = Counter((point.key, point.step) for point in history)
    assert set(counted.values()) == {1}, "a point was uploaded twice"
    images = sorted(path.replace("+", "%").split("%timestamp")[0] for path in context.tracking.image_paths(run.info.run_id))
    assert run.data.params["training.seed"] == "4242"
    return run.info.run_id, run.info.status, {(point.key, point.step): point.value for point in history}, images


def test_a_run_that_was_deleted_has_everything_again(context: StepContext) -> None:
    dataset = small_faces(context)
    trained = run_train(RECIPE, dataset, context)
    first_id, status, metrics, images = uploaded(context, trained)
    assert status == "FINISHED"
    assert {("train/loss", step) for step in range(1, STEPS + 1)} <= metrics.keys()
    assert any("samples~ema_grid" in image for image in images)

    context.tracking.client.delete_run(first_id)
    assert context.tracking.training_run(trained.run_key) is None
    launches: list[int] = []
    assert run_train(RECIPE, dataset, context, launches=launches) == trained
    assert not launches
    second_id, *again = uploaded(context, trained)
    assert second_id != first_id
    assert again == ["FINISHED", metrics, images]
    assert any("MLflow had no finished run of training" in note for note in notes(context))

    context.tracking.client.delete_run(second_id)
    assert sync(trained.run_key, context) > len(metrics)
    third_id, *again = uploaded(context, trained)
    assert third_id not in (first_id, second_id)
    assert again == ["FINISHED", metrics, images]
    assert sync(trained.run_key, context) == 0

    # With a damaged specification the one before it describes the run, and a finished training needs none.
    specs = [item.uri for item in context.store.list(context.layout.run(trained.run_key).attempts)]
    context.store.put_bytes(context.layout.run(trained.run_key).attempts / "99999999T000000-x" / "spec.json", b"{}")
    assert sync(trained.run_key, context) == 0
    for uri in specs:
        context.store.delete(uri)

    # As if another step had made the run anew, and the end of the pipeline had closed it.
    context.tracking.client.delete_run(third_id)
    context.tracking.step_run("train", run_key=trained.run_key, name="made by evaluate")
    fourth = context.tracking.training_run(trained.run_key)
    assert fourth is not None
    context.tracking.set_status(fourth.info.run_id, "KILLED")
    run_train(RECIPE, dataset, context)
    assert list(uploaded(context, trained)) == [fourth.info.run_id, "FINISHED", metrics, images]


def test_images_and_files_that_were_deleted_are_uploaded_again_by_sync(context: StepContext, embedded: Services) -> None:
    trained = run_train(RECIPE, small_faces(context), context)
    run_id, _, metrics, images = uploaded(context, trained)
    folder = next((embedded.home / "s3").rglob(f"{run_id}/artifacts"))
    bucket, *prefix = folder.relative_to(embedded.home / "s3").parts
    stored = [item.uri for item in context.store.list(StoreUri(bucket, "/".join(prefix)))]
    lost = [uri for uri in stored if "samples~seed_003" in uri.key or uri.key.endswith(".json.gz")]
    assert len({uri.key.rsplit("/", 2)[1] for uri in lost}) == 2, "images and a trace"
    for uri in lost:
        context.store.delete(uri)
    assert len(uploaded(context, trained)[3]) < len(images)
    assert sync(trained.run_key, context) == 3, "two steps' images of one seed, and a trace"
    assert uploaded(context, trained) == (run_id, "FINISHED", metrics, images)
    assert sync(trained.run_key, context) == 0


def test_a_training_whose_last_score_is_due_is_not_finished_by_sync(context: StepContext) -> None:
    """It is stored as a stop within that score stores it; once scores are off, nothing is due."""
    trained = run_train(RECIPE, small_faces(context), context)
    run_id, *_ = uploaded(context, trained)
    commit = context.layout.locate(trained.uri) / COMMIT_FILE
    stored = json.loads(context.store.get_bytes(commit))
    context.store.put_bytes(commit, canonical_json({**stored, "notes": {**stored["notes"], SCORE_DUE: True}}))
    context.tracking.set_status(run_id, "KILLED")
    spec = newest_spec(trained.run_key, context)
    for every, status in ((2, "KILLED"), (None, "FINISHED")):
        training = spec.training.model_copy(update={"score_every_steps": every})
        sync(trained.run_key, context, spec=spec.model_copy(update={"training": training}))
        assert uploaded(context, trained)[:2] == (run_id, status)
