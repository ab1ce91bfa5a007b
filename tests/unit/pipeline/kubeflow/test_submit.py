"""Submitting: once whatever happens to the answers, refused in words, and with the identity that a server asks for."""

from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.kfp_server import FakeKfp, Fault, kfp_server
from celebdit_testing.submissions import DIGESTS, OPTIONS, connect, submitted

from components.errors import BadInput, TemporaryFailure
from pipeline.config import RunConfig, load_config
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience
from pipeline.submit import submit

CANARY = "canary-kfp-token-0123456789"


def test_a_submission_uploads_a_version_named_by_its_digest_and_starts_one_run(server: FakeKfp, config: RunConfig) -> None:
    submission = submitted(server, config)
    (version,) = server.versions.values()
    (run,) = server.runs.values()
    assert version.name == submission.version
    assert version.name.startswith("sha256-")
    assert run.display_name.startswith("smoke-")
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert server.experiments[run.experiment_id].display_name == "faces"
    assert submission.url == f"{server.url}/#/runs/details/{run.run_id}"
    assert submission.is_new
    for image in DIGESTS.values():
        assert image in server.packages[version.pipeline_version_id]


def test_the_same_submission_twice_is_one_run_and_another_configuration_is_another(server: FakeKfp, config: RunConfig) -> None:
    first, again = submitted(server, config), submitted(server, config)
    assert (first.run_id, first.is_new, again.run_id, again.is_new) == (first.run_id, True, first.run_id, False)
    assert len(server.versions) == len(server.runs) == len(server.pipelines) == len(server.experiments) == 1
    other = submit(load_config("smoke", ["training.total_steps=13"]), OPTIONS, connect(server), experiment="faces")
    assert other.run_id != first.run_id
    assert len(server.versions) == len(server.runs) == 2


def test_again_starts_another_run_of_the_same_version(server: FakeKfp, config: RunConfig) -> None:
    first, second = submitted(server, config), submitted(server, config, again=True)
    assert first.run_id != second.run_id
    assert len(server.versions) == 1


def test_kfps_mlflow_plugin_opens_its_run_in_the_experiment_of_the_submission(server: FakeKfp, config: RunConfig) -> None:
    submitted(server, config)
    (run,), (version,) = server.runs.values(), server.versions.values()
    assert run.plugins_input == {"mlflow": {"experiment_name": "faces"}}
    assert version.tags == {"preset": "smoke", "configuration": config.digest()[:12]}


@pytest.mark.parametrize("version", ["2.15.2", "2.16.0"])
def test_a_server_without_plugins_and_tags_gets_none(version: str, config: RunConfig) -> None:
    with kfp_server(version=version) as server:
        assert submitted(server, config).is_new
    (run,), (uploaded,) = server.runs.values(), server.versions.values()
    assert (run.plugins_input, uploaded.tags) == (None, None)
    assert server.requests.count("run_service_create_run") == 1, "it is not asked for what it refuses"


def test_a_server_on_which_the_plugin_is_not_set_up_runs_without_it(server: FakeKfp, config: RunConfig) -> None:
    server.faults.append(Fault("run_service_create_run", 400, text="Invalid input error: plugin mlflow is not configured"))
    assert submitted(server, config).is_new
    (run,) = server.runs.values()
    assert run.plugins_input is None
    assert server.requests.count("run_service_create_run") == 2


WRITES = (
    "pipeline_service_create_pipeline",
    "upload_pipeline_version",
    "experiment_service_create_experiment",
    "run_service_create_run",
)


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("kind", ["lost", "drop", 500, 503, 429])
def test_a_lost_answer_or_a_passing_failure_neither_doubles_nor_ends_a_submission(
    server: FakeKfp, config: RunConfig, operation: str, kind: int | str
) -> None:
    server.faults.append(Fault(operation, kind, times=2 if kind != "lost" else 1))
    submission = submitted(server, config)
    assert list(server.runs) == [submission.run_id]
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_an_answer_that_comes_too_late_is_looked_for(server: FakeKfp, config: RunConfig) -> None:
    server.faults.append(Fault("run_service_create_run", "slow", text="1.5"))
    kubeflow = connect(server, request_timeout_s=0.5)
    submission = submit(config, OPTIONS, kubeflow, experiment="faces")
    assert list(server.runs) == [submission.run_id]


@pytest.mark.parametrize("operation", WRITES[:3])
def test_a_concurrent_submission_is_joined_after_409(server: FakeKfp, config: RunConfig, operation: str) -> None:
    rival = connect(server)
    done = []

    def overtake(name: str) -> None:
        if name == operation and not done:
            done.append(name)
            submit(config, OPTIONS, rival, experiment="faces")

    server.before = overtake
    submitted(server, config)
    assert done
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_of_two_runs_started_at_the_same_moment_the_older_stays(server: FakeKfp, config: RunConfig) -> None:
    rival = connect(server)
    done: list[Any] = []

    def overtake(name: str) -> None:
        if name == "run_service_create_run" and not done:
            done.append(None)
            done.append(submit(config, OPTIONS, rival, experiment="faces"))

    server.before = overtake
    submission = submitted(server, config)
    assert submission.run_id == done[1].run_id
    assert [run.storage_state for run in server.runs.values()] == ["AVAILABLE", "ARCHIVED"]
    assert [run.state for run in server.runs.values()] == ["PENDING", "CANCELED"]


@pytest.mark.parametrize(
    ("status", "message"), [(401, "not authenticated"), (403, "not authorised"), (404, "check --endpoint"), (400, "by order of the test")]
)
def test_a_refusal_is_bad_input_with_a_hint_and_is_not_repeated(server: FakeKfp, config: RunConfig, status: int, message: str) -> None:
    server.faults.append(Fault("pipeline_service_list_pipelines", status, times=99))
    with pytest.raises(BadInput) as refused:
        submitted(server, config)
    assert message in f"{refused.value.message} {refused.value.hint}"
    assert str(status) in refused.value.message
    assert server.count("pipeline_service_list_pipelines") == 1
    assert not server.runs


@pytest.mark.parametrize("kind", [500, "drop"])
def test_a_server_that_stays_broken_is_a_temporary_failure_within_the_deadline(server: FakeKfp, config: RunConfig, kind: int | str) -> None:
    server.faults.append(Fault(".*", kind, times=10**6))
    with pytest.raises(TemporaryFailure, match=server.url):
        submit(config, OPTIONS, connect(server, deadline_s=0.3), experiment="faces")


def test_an_unreachable_server_is_a_temporary_failure(config: RunConfig) -> None:
    with pytest.raises(TemporaryFailure, match="is unavailable"):
        submit(config, OPTIONS, Kubeflow(KfpAddress("http://127.0.0.1:9", None), Patience(deadline_s=0.1)), experiment="faces")


def test_a_login_page_is_recognised(server: FakeKfp) -> None:
    server.faults.append(Fault("healthz_service_get_healthz", "html"))
    with pytest.raises(BadInput, match="login page"):
        connect(server).multi_user()


def test_a_server_with_namespaces_receives_one_and_a_token(config: RunConfig) -> None:
    with kfp_server(multi_user=True, token=CANARY) as server:
        with pytest.raises(BadInput, match="401"):
            connect(server, namespace="team").multi_user()
        with pytest.raises(BadInput, match="none was given"):
            connect(server, token=CANARY).multi_user()
        submission = submit(config, OPTIONS, connect(server, namespace="team", token=CANARY), experiment="faces")
        assert list(server.runs) == [submission.run_id]
        assert {entry.namespace for entry in server.experiments.values()} == {"team"}


def test_data_on_this_machine_is_refused_before_anything_is_sent(server: FakeKfp, tmp_path: Path) -> None:
    own = load_config("smoke", [f"data.source={tmp_path / 'faces.zip'}"])
    with pytest.raises(BadInput, match=r"data\.source .* cannot read it"):
        submit(own, OPTIONS, connect(server), experiment="faces")
    assert not server.requests
