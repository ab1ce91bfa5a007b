"""Values that a step logs once: never twice at one step, and without a request for each metric that a run does not have."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.records import open_records


@pytest.mark.usefixtures("no_endpoints")
def test_a_value_is_logged_once_a_step_and_only_metrics_that_are_there_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, history = list[str](), MlflowClient.get_metric_history

    def counted(client: MlflowClient, run_id: str, key: str) -> object:
        asked.append(key)
        return history(client, run_id, key)

    with open_records(tmp_path / "home") as context:
        tracking = context.tracking
        run_id = tracking.client.create_run(tracking.experiment_id).info.run_id
        monkeypatch.setattr(MlflowClient, "get_metric_history", counted)
        tracking.log_values(run_id, {"a": 1.0, "b": 2.0}, step=1)
        assert asked == []
        tracking.log_values(run_id, {"a": 9.0, "c": 3.0}, step=1)
        tracking.log_values(run_id, {"a": 4.0}, step=2)
        assert asked == ["a", "a"]
        points = {key: [(point.step, point.value) for point in tracking.client.get_metric_history(run_id, key)] for key in "abc"}
    assert points == {"a": [(1, 1.0), (2, 4.0)], "b": [(1, 2.0)], "c": [(1, 3.0)]}
