"""A training whose machine's clock was set back between two attempts: the later attempt counts as the newest."""

from pathlib import Path

from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.storage.unfinished_uploads import begin_upload, unfinished_uploads
from components.train.reporting.sync import sync
from components.train.spec import newest_spec, store_spec
from pipeline.services import Endpoints


def test_sync_takes_the_later_attempt_after_the_clock_was_set_back(endpoints: Endpoints, tmp_path: Path) -> None:
    """The first attempt began in 2061 by its clock."""
    servers = {"endpoint": endpoints.s3_url, "mlflow_uri": endpoints.mlflow_url, "run_id": tmp_path.name}
    store = f"{endpoints.environment['CELEBDIT_STORE']}/{tmp_path.name}"
    here, elsewhere = (step_context("train", tmp_path / place, store, **servers) for place in ("here", "elsewhere"))
    dataset = small_faces(here)
    trained = run_train(tiny_recipe(total_steps=2, seed=4244), dataset, here)
    first = newest_spec(trained.run_key, here).model_copy(update={"attempt": "20610101T000000.000000-ffffff"})
    store_spec(first, here.store, here.layout)

    run_train(tiny_recipe(total_steps=4, seed=4244), dataset, here)
    later, run = newest_spec(trained.run_key, elsewhere), here.layout.run(trained.run_key)
    assert later.training.total_steps == 4
    assert later.attempt > first.attempt
    assert here.tracking.training_run(trained.run_key).data.tags["attempt"] == later.attempt
    uri = run.checkpoints / "step-000000009" / later.attempt / "weights.safetensors"
    begin_upload(here.store, uri).put_part(here.store.client, 1, bytes(8))  # as if the later attempt went on
    sync(trained.run_key, elsewhere)
    assert [upload.uri for upload in unfinished_uploads(here.store, run.checkpoints) or []] == [uri]
    assert "were removed" not in notes(elsewhere)
    assert here.tracking.training_run(trained.run_key).info.status == "FINISHED"
