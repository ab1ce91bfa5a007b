"""MLflow servers as people set them up: below a path, written with a slash at the end, and without serving artifacts."""

from pathlib import Path

import pytest
from celebdit_testing.mlflow_steps import register_without_weights
from celebdit_testing.servers import mlflow_server
from celebdit_testing.steps import step_context

from components.finalize import finalize
from components.preflight.preflight import run
from components.resources import ResourcesConfig
from components.storage import StoreUri

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def test_a_server_below_a_path_that_serves_no_artifacts_works(
    tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", rclone_endpoint)
    options = ("--static-prefix", "/team/mlflow", "--no-serve-artifacts", "--default-artifact-root", "s3://bucket/unserved")
    with mlflow_server(tmp_path / "server", path="/team/mlflow", options=options) as server:
        context = step_context("preflight", tmp_path, "s3://bucket/x", endpoint=rclone_endpoint, mlflow_uri=f"{server.url}/")
        lines = run(ResourcesConfig(), None, context, model_name="faces")
        assert "accepts logged models" in lines["mlflow_calls"]
        assert lines["mlflow"].startswith(f"{server.url}/#/experiments/")
        assert register_without_weights(context, tmp_path, "faces") == "1"
        finalize.run("FINISHED", "", context)

    assert context.store.list(StoreUri("bucket", "unserved")), "artifacts went to object storage without the server"
