"""Following a run to its end, what its end means, and starting it again."""

from typing import Any

import pytest
from celebdit_testing.kfp_server import FakeKfp, Fault
from celebdit_testing.submissions import connect, failed_run, progress, submitted

from components.errors import BadInput, GateFailed, Interrupted, TemporaryFailure
from components.runtime.events import Event
from pipeline.config import RunConfig
from pipeline.follow import failure_of, follow
from pipeline.steps import step_names
from pipeline.submit import resume


def test_following_tells_each_step_once_and_returns_the_outcome(server: FakeKfp, config: RunConfig) -> None:
    script = [(name, state) for name in step_names() for state in ("RUNNING", "RUNNING", "SUCCEEDED")]
    progress(server, script, "SUCCEEDED")
    events: list[Event] = []
    run = follow(submitted(server, config).run_id, connect(server), on_event=events.append, sleep=lambda seconds: None)
    assert failure_of(run) is None
    assert [(event.step, event.kind) for event in events] == [(name, kind) for name in step_names() for kind in ("started", "finished")]


def outcome(server: FakeKfp, config: RunConfig, script: list[tuple[str, str]], end: str) -> Any:
    progress(server, script, end)
    run = follow(submitted(server, config).run_id, connect(server), on_event=lambda event: None, sleep=lambda seconds: None)
    return failure_of(run)


def test_a_gate_that_did_not_pass_is_exit_code_1(server: FakeKfp, config: RunConfig) -> None:
    assert isinstance(outcome(server, config, [("gate", "SUCCEEDED"), ("register", "SKIPPED")], "SUCCEEDED"), GateFailed)


def test_a_failed_step_gives_its_own_kind_of_error(server: FakeKfp, config: RunConfig) -> None:
    failure = outcome(server, config, [("train", "FAILED"), ("finalize", "SUCCEEDED")], "FAILED")
    assert failure.exit_code == 3
    assert failure.message == "train: main: Error (exit code 3)"
    assert "celebdit resume" in failure.hint


def test_a_cancelled_run_is_interrupted(server: FakeKfp, config: RunConfig) -> None:
    assert isinstance(outcome(server, config, [], "CANCELED"), Interrupted)


def test_following_waits_out_a_temporary_outage_of_the_server(server: FakeKfp, config: RunConfig) -> None:
    run_id = submitted(server, config).run_id
    progress(server, [("ingest", "RUNNING")], "SUCCEEDED")
    server.faults += [Fault("run_service_get_run", kind, times=2) for kind in ("drop", 500, "lost")]
    run = follow(run_id, connect(server), on_event=lambda event: None, sleep=lambda seconds: None)
    assert run.state == "SUCCEEDED"
    server.faults.append(Fault("run_service_get_run", 502, times=10**6))
    ticks = iter(range(10**6))
    with pytest.raises(TemporaryFailure, match="502"):
        follow(run_id, connect(server), on_event=lambda event: None, patience_s=3, sleep=lambda seconds: None, clock=lambda: next(ticks))


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_resume_starts_the_failed_steps_of_the_same_run_again(server: FakeKfp, config: RunConfig, state: str) -> None:
    run = failed_run(server, config, state)
    resumed = resume(run.run_id, connect(server))
    assert (resumed.run_id, resumed.is_new, run.state) == (run.run_id, False, "RUNNING")


def test_resume_survives_a_lost_answer(server: FakeKfp, config: RunConfig) -> None:
    run = failed_run(server, config)
    server.faults.append(Fault("run_service_retry_run", "lost"))
    assert resume(run.run_id, connect(server)).run_id == run.run_id
    assert run.state == "RUNNING"


def test_resume_of_a_run_that_the_server_cannot_retry_starts_one_of_the_same_version(server: FakeKfp, config: RunConfig) -> None:
    run = failed_run(server, config)
    server.faults.append(Fault("run_service_retry_run", 404, text="workflow not found"))
    resumed = resume(run.run_id, connect(server))
    assert resumed.is_new
    assert server.runs[resumed.run_id].pipeline_version_reference == run.pipeline_version_reference
    assert len(server.versions) == 1


def test_resume_of_a_finished_run_is_refused_and_of_a_running_one_is_harmless(server: FakeKfp, config: RunConfig) -> None:
    run = failed_run(server, config, "SUCCEEDED")
    with pytest.raises(BadInput, match="nothing to resume"):
        resume(run.run_id, connect(server))
    run.state = "RUNNING"
    assert resume(run.run_id, connect(server)).state == "RUNNING"
    assert "run_service_retry_run" not in server.requests
    with pytest.raises(BadInput, match="404"):
        resume("no-such-run", connect(server))
