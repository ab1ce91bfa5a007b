"""`celebdit sync` removes what ended attempts left incomplete in object storage, and nothing of an attempt that may still write."""

from pathlib import Path

import pytest
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.runtime.context import StepContext
from components.storage import StoreUri
from components.storage.unfinished_uploads import begin_upload, unfinished_uploads
from components.stores.checkpoint_names import rescued_name
from components.train.reporting.sync import sync
from components.train.spec import SPEC_FILE, TrainSpec, newest_spec
from pipeline.services import Endpoints

pytestmark = [pytest.mark.fault, pytest.mark.slow]

EARLIER, LATER = "20260101T000000.000000-a", "99991231T000000.000000-a"


def incomplete_folders(context: StepContext, home: StoreUri) -> set[str]:
    """Return the names of the attempts that left files without a commit, or the parts of a file, at step 9 below `home`."""
    names = [item.uri for item in context.store.list(home / "step-000000009")]
    names += [upload.uri for upload in unfinished_uploads(context.store, home / "step-000000009") or []]
    return {uri.key.split("/")[-2] for uri in names}


@pytest.mark.parametrize("kind", ["checkpoints", "snapshots"])
def test_incomplete_uploads_of_ended_attempts_are_removed(kind: str, endpoints: Endpoints, tmp_path: Path) -> None:
    """The attempt that was stopped while it uploaded is the newest one: only on its own machine is it known to have ended."""
    servers = {"endpoint": endpoints.s3_url, "mlflow_uri": endpoints.mlflow_url, "run_id": tmp_path.name}
    store = f"{endpoints.environment['CELEBDIT_STORE']}/{tmp_path.name}"
    here, elsewhere = (step_context("train", tmp_path / place, store, **servers) for place in ("here", "elsewhere"))
    trained = run_train(tiny_recipe(total_steps=2, seed=4243), small_faces(here), here)
    run, newest = here.layout.run(trained.run_key), newest_spec(trained.run_key, here).attempt
    home = {"checkpoints": run.checkpoints, "snapshots": run.snapshots}[kind]
    for attempt in (EARLIER, newest, rescued_name(newest), LATER):
        here.store.put_bytes(home / "step-000000009" / attempt / "weights.safetensors", b"half")
        begin_upload(here.store, home / "step-000000009" / attempt / "optimizer.safetensors").put_part(here.store.client, 1, bytes(8))
    complete = [item.uri for item in here.store.list(run.checkpoints) if "step-000000002" in item.uri.key]

    sync(trained.run_key, elsewhere)
    assert incomplete_folders(here, home) == {newest, rescued_name(newest), LATER}
    path = here.run_folder(trained.run_key) / SPEC_FILE
    spec = TrainSpec.load(path)
    spec.model_copy(update={"resources": spec.resources.model_copy(update={"nodes": 2})}).dump(path)
    sync(trained.run_key, here)
    assert incomplete_folders(here, home) == {newest, rescued_name(newest), LATER}, "the node that writes may be another machine"
    spec.dump(path)
    sync(trained.run_key, here)
    assert incomplete_folders(here, home) == {rescued_name(newest), LATER}
    assert [item.uri for item in here.store.list(run.checkpoints) if "step-000000002" in item.uri.key] == complete
    assert "2 incomplete uploads of ended attempts were removed" in notes(here)
