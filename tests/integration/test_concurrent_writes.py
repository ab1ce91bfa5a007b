"""Steps that write the same to MLflow at the same moment: all succeed, whatever the database says to the second one."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celebdit_testing.concurrent_writes import WRITES, evaluation_of, new_run
from celebdit_testing.registered import registry_context
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from components.tracking.client import Run, Tracking
from components.tracking.logged_models import LoggedModels
from components.tracking.tags import TAG_KIND, TAG_RUN
from pipeline.services import Endpoints, Services

_TURNS = 4


@pytest.mark.parametrize("write", WRITES)
def test_callers_that_write_the_same_at_once_all_succeed(write: str, embedded: Services, endpoints: Endpoints, tmp_path: Path) -> None:
    context = registry_context(endpoints, tmp_path)
    for turn in range(_TURNS):
        WRITES[write](context, turn)


@pytest.mark.parametrize("kind", ["pipeline", "step"])
def test_of_two_processes_that_create_a_run_at_once_both_use_the_older_one(
    kind: str, endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one looks before the first one creates the run, and creates it afterwards."""
    context = registry_context(endpoints, tmp_path, run_id=f"racing-{kind}-{tmp_path.name}")
    first, second = Tracking(context.settings), Tracking(context.settings)
    find: Callable[[Tracking], Run] = Tracking.pipeline_run if kind == "pipeline" else lambda tracking: tracking.step_run("evaluate")
    parent = find(first)
    time.sleep(0.01)
    answers = [None] if kind == "pipeline" else [None, first.find_run({TAG_RUN: str(context.settings.run_id), TAG_KIND: "pipeline"})]
    look = second.find_run
    monkeypatch.setattr(second, "find_run", lambda tags: answers.pop(0) if answers else look(tags))
    assert find(second).info.run_id == parent.info.run_id
    kinds = [run.data.tags[TAG_KIND] for run in first.search_runs({TAG_RUN: str(context.settings.run_id)})]
    assert sorted(kinds) == (["pipeline"] if kind == "pipeline" else ["pipeline", "step"]), "the second one's is deleted"


@pytest.mark.parametrize("use", ["logs to it", "makes a child of it"])
def test_a_run_that_a_third_process_uses_is_not_deleted_for_an_older_one(
    use: str, endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the first one, which creates its run last, is behind; the third one uses the only run that it finds until then."""
    context = registry_context(endpoints, tmp_path, run_id=f"racing-three-{tmp_path.name}-{use[0]}")
    first, second, third = (Tracking(context.settings) for _ in range(3))
    create = second.client.create_run

    def create_and_lose(experiment_id: str, *, tags: dict[str, str], run_name: str) -> Run:
        run = create(experiment_id, tags=tags, run_name=run_name)
        if use == "logs to it":
            third.log_params(third.pipeline_run().info.run_id, {"used": True})
        else:
            third.step_run("evaluate")
        first.client.create_run(experiment_id, start_time=1, tags=tags, run_name=run_name)
        return run

    monkeypatch.setattr(second.client, "create_run", create_and_lose)
    assert second.pipeline_run().info.start_time == 1
    runs = first.search_runs({TAG_RUN: str(context.settings.run_id), TAG_KIND: "pipeline"})
    assert len(runs) == 2


@pytest.mark.parametrize("call", ["log_metric", "log_batch"])
def test_a_metric_that_another_caller_wrote_in_the_same_millisecond_is_no_error(
    call: str, endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL answered 400 to the second of two equal rows; the answer is repeated here after the row was written."""
    context = registry_context(endpoints, tmp_path)
    run_id, write, refused = new_run(context, 0, f"twice-{call}"), getattr(context.tracking.client, call), []

    def write_and_refuse(*arguments: object, **named: object) -> None:
        write(*arguments, **named)
        if not refused:
            refused.append(call)
            raise MlflowException("duplicate key value violates unique constraint metric_pk", error_code=BAD_REQUEST)

    monkeypatch.setattr(context.tracking.client, call, write_and_refuse)
    if call == "log_metric":
        LoggedModels(context.tracking).log_evaluation(run_id, evaluation_of("e" * 64))
        expected = evaluation_of("e" * 64).metrics
    else:
        context.tracking.log_values(run_id, expected := {"loss": 0.5})
    assert refused == [call]
    assert context.tracking.client.get_run(run_id).data.metrics == expected
    assert len(context.tracking.client.get_metric_history(run_id, next(iter(expected)))) == 1, "the same row, and no second one"
