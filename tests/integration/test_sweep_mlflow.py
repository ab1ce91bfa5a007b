"""A sweep in MLflow: an experiment of its own, a parent with the page, a child per trial; the same after a kill or an outage."""

from dataclasses import replace
from pathlib import Path

import pytest
from celebdit_testing.steps import step_context
from celebdit_testing.sweeps import METRIC, FreeRunner, sweep_of
from mlflow import MlflowClient

from components.runtime.context import StepContext
from pipeline.services import Endpoints
from pipeline.sweeps.coordinator import Coordinator
from pipeline.sweeps.halving import Done
from pipeline.sweeps.journal import Journal
from pipeline.sweeps.mlflow_log import SweepLog, sweep_experiment
from pipeline.sweeps.records import SweepState
from pipeline.sweeps.sweep_file import Sweep


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    store = f"{endpoints.environment['CELEBDIT_STORE']}/{tmp_path.name}"
    return step_context("sweep", tmp_path / "step", store, endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url)


def search(sweep: Sweep, context: StepContext, log: SweepLog, runner: FreeRunner) -> SweepState:
    journal = Journal(context.store, context.layout.sweep(sweep.digest))
    state = SweepState.of(journal.read())
    log.begin(state)
    end = None
    try:
        end = Coordinator(sweep, journal, runner, lambda config: None, log.show).run(state)
    finally:
        log.end(state, end)
    return state


def test_trials_are_children_of_one_parent_with_the_settings_that_vary(context: StepContext, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "shown")
    notes: list[str] = []

    def kill(piece: object) -> None:
        if len(runner.ran) == 3:
            raise KeyboardInterrupt

    runner = FreeRunner(kill)
    with pytest.raises(KeyboardInterrupt):
        search(sweep, context, SweepLog(sweep, context, notes.append), runner)
    client = MlflowClient(context.settings.mlflow_uri)
    experiment = client.get_experiment_by_name(sweep_experiment("shown"))
    assert experiment is not None, notes
    ids = [experiment.experiment_id]
    (parent,) = client.search_runs(ids, "tags.`celebdit.kind` = 'sweep'")
    assert parent.info.status == "KILLED"
    trials = client.search_runs(ids, "tags.`celebdit.kind` = 'trial'")
    (stopped,) = [run for run in trials if run.info.status == "KILLED"]
    assert stopped.data.tags["sweep.status"] == "interrupted"
    assert "| interrupted |" in parent.data.tags["mlflow.note.content"]
    assert "| running |" not in parent.data.tags["mlflow.note.content"]

    state = search(sweep, context, SweepLog(sweep, context, notes.append), FreeRunner())
    assert notes == []
    (parent,) = client.search_runs(ids, "tags.`celebdit.kind` = 'sweep'")
    trials = client.search_runs(ids, "tags.`celebdit.kind` = 'trial'")
    assert {run.data.tags["sweep.trial"] for run in trials} == {"0", "1", "2", "3"}, "no trial twice"
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *trials)} == {"FINISHED"}
    assert all(set(run.data.params) == {"network.dropout", "optimizer.lr_peak"} for run in trials)
    best = next(run for run in trials if run.data.tags["sweep.status"] == "winner")
    assert (best.data.params["optimizer.lr_peak"], best.data.params["network.dropout"]) == ("0.002", "0")
    assert best.info.run_name == "trial 1: dropout 0, lr_peak 0.002"
    history = client.get_metric_history(best.info.run_id, METRIC)
    assert sorted(point.step for point in history) == [4, 8], "each rung once, at its training step"
    assert best.data.metrics[f"{METRIC}_half_width"] == pytest.approx(0.2)
    assert parent.data.params["metric"] == METRIC
    assert parent.data.tags["sweep.best_trial"] == "1"
    assert parent.data.tags["model.version"] == "m 1"
    assert "| 1 | 0 | 0.002 |" in parent.data.tags["mlflow.note.content"]
    page = context.tracking.read_artifact(parent.info.run_id, "sweep.html").decode()
    assert state.finished is not None
    assert "Final run of trial 1: gate pass" in page


def test_an_outage_of_mlflow_does_not_stop_a_sweep(context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sweep, notes = sweep_of(tmp_path, "away"), list[str]()
    away = StepContext(settings=replace(context.settings, mlflow_uri="http://127.0.0.1:9"), events=context.events)
    journal, state = Journal(context.store, context.layout.sweep(sweep.digest)), SweepState()
    log = SweepLog(sweep, away, notes.append)
    log.begin(state)
    assert Coordinator(sweep, journal, FreeRunner(), lambda config: None, log.show).run(state) == Done()
    assert len(notes) == 1, "an outage costs its time-outs once, not with every record"
    assert "the sweep goes on" in notes[0]
