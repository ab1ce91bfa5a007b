"""Requests that MLflow's client repeats leave a trace in the log."""

import logging
from pathlib import Path

import pytest
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.steps import step_context

from components.errors import TrackingUnavailable

EXPERIMENT = {"experiment": {"experiment_id": "7", "name": "tests", "lifecycle_stage": "active"}}


@pytest.mark.parametrize(("failure", "cause"), [(503, "status 503"), (429, "status 429"), (None, "RemoteDisconnected")])
@pytest.mark.parametrize("failures", [2, 100])
def test_a_repeated_request_is_a_warning_with_attempt_pause_limit_and_cause(
    failure: int | None, cause: str, failures: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    requests = []

    class MlflowHandler(Handler):
        def do_GET(self) -> None:  # noqa: N802 - named by the base class
            requests.append(self.path)
            if len(requests) > failures:
                self.answer(200, EXPERIMENT)
            elif failure is None:
                self.hang_up()
            else:
                self.answer(failure)

    with serving(MlflowHandler) as url, caplog.at_level(logging.WARNING):
        tracking = step_context("models", tmp_path, "s3://bucket/x", endpoint=None, mlflow_uri=url).tracking
        if failures == 2:
            assert tracking.experiment_id == "7"
        else:
            with pytest.raises(TrackingUnavailable):
                _ = tracking.experiment_id
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == min(failures, 3) == len(requests) - 1
    for attempt, warning in enumerate(warnings, start=1):
        assert warning.startswith("GET /api/2.0/mlflow/experiments/get-by-name"), warning
        assert f" failed, attempt {attempt}: " in warning
        assert cause in warning
        assert f"next attempt in about 0.0 s, giving up after {3 - attempt} more" in warning
