"""What operators of a cluster do with a run, and what they see: docs/kubernetes.md lists the same cases with the names of these tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.kfp_server import FakeKfp, Fault, kfp_server
from celebdit_testing.kube_server import kube_server
from celebdit_testing.submissions import OPTIONS, connect, failed_run, progress, run_cli, submitted

from components.environment import KFP_ENDPOINT, KFP_NAMESPACE
from pipeline.config import RunConfig
from pipeline.follow import follow
from pipeline.steps import step_names
from pipeline.submit import Timing, resume, schedule

PLUGIN = {"mlflow": {"experiment_name": "faces"}}
HOURLY = ("schedule", "smoke", "--every", "3600", "--experiment", "faces")


@pytest.fixture
def endpoint(server: FakeKfp, lock: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKfp:
    """A server whose address is in the environment, where commands are typed."""
    monkeypatch.setenv(KFP_ENDPOINT, server.url)
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    return server


def test_the_command_resume_retries_a_cancelled_run_and_waits_for_its_end(
    endpoint: FakeKfp, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = failed_run(endpoint, config, "CANCELED")
    code, out, err = run_cli(capsys, "resume", run.run_id, "--json")
    assert (code, json.loads(out)["run_id"], json.loads(out)["state"]) == (0, run.run_id, "RUNNING"), err
    assert f"{endpoint.url}/#/runs/details/{run.run_id}" in err
    progress(endpoint, [(name, "SUCCEEDED") for name in step_names()], "SUCCEEDED")
    code, out, _ = run_cli(capsys, "resume", run.run_id, "--wait", "--json")
    assert (code, json.loads(out)["state"]) == (0, "SUCCEEDED")
    code, _, err = run_cli(capsys, "resume", run.run_id)
    assert code == 2
    assert "there is nothing to resume" in err
    assert endpoint.count("run_service_retry_run") == 1


def test_the_command_resume_says_that_it_started_another_run_where_the_workflow_is_gone(
    endpoint: FakeKfp, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = failed_run(endpoint, config)
    endpoint.faults.append(Fault("run_service_retry_run", 404, text="workflow not found"))
    code, out, err = run_cli(capsys, "resume", run.run_id, "--json")
    assert code == 0
    assert "the server cannot retry this run; started smoke-" in err
    assert json.loads(out)["run_id"] != run.run_id
    assert len(endpoint.runs) == 2


def test_the_command_schedule_creates_once_and_deletes(endpoint: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_cli(capsys, *HOURLY, "--json")
    assert (code, json.loads(out)["new"]) == (0, True), err
    assert err.startswith("scheduled smoke-")
    code, out, err = run_cli(capsys, *HOURLY, "--json")
    assert (code, json.loads(out)["new"]) == (0, False)
    assert "already scheduled: smoke-" in err
    (entry,) = endpoint.recurring.values()
    assert entry.trigger.periodic_schedule.interval_second == "3600"
    code, out, _ = run_cli(capsys, *HOURLY, "--delete", "--json")
    assert (code, json.loads(out)) == (0, {"deleted": [entry.display_name]})
    assert not endpoint.recurring
    assert run_cli(capsys, *HOURLY, "--delete")[0] == 2


def test_every_run_of_a_schedule_has_the_input_of_kfps_mlflow_plugin(server: FakeKfp, config: RunConfig) -> None:
    timing = Timing(every_s=3600)
    schedule(config, OPTIONS, connect(server), experiment="faces", timing=timing)
    (entry,) = server.recurring.values()
    assert entry.plugins_input == PLUGIN


@pytest.mark.parametrize("version", ["2.15.2", "2.16.0"])
def test_a_schedule_on_a_server_before_plugins_has_no_input_for_them(version: str, config: RunConfig) -> None:
    with kfp_server(version=version) as server:
        _, is_new = schedule(config, OPTIONS, connect(server), experiment="faces", timing=Timing(every_s=3600))
    (entry,) = server.recurring.values()
    assert (is_new, entry.plugins_input) == (True, None)
    assert server.count("recurring_run_service_create_recurring_run") == 1, "it is not asked for what it refuses"


def test_a_schedule_is_made_without_the_plugin_where_it_is_not_set_up(server: FakeKfp, config: RunConfig) -> None:
    server.faults.append(Fault("recurring_run_service_create_recurring_run", 400, text="plugin mlflow is not configured"))
    _, is_new = schedule(config, OPTIONS, connect(server), experiment="faces", timing=Timing(every_s=3600))
    (entry,) = server.recurring.values()
    assert (is_new, entry.plugins_input) == (True, None)


@pytest.mark.parametrize("plugin_input", [PLUGIN, {"mlflow": {"disabled": True}}, None])
def test_a_resumed_run_keeps_the_input_for_plugins_of_the_run_before(
    server: FakeKfp, config: RunConfig, plugin_input: dict[str, Any] | None
) -> None:
    run = failed_run(server, config)
    run.plugins_input = plugin_input
    server.faults.append(Fault("run_service_retry_run", 404, text="workflow not found"))
    resumed = resume(run.run_id, connect(server))
    assert resumed.is_new
    assert server.runs[resumed.run_id].plugins_input == plugin_input


def test_all_commands_work_in_the_namespace_of_a_user(
    lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    with kfp_server(multi_user=True) as server, kube_server(tmp_path, namespace="team") as kube:
        monkeypatch.setenv(KFP_ENDPOINT, server.url)
        for command in (["submit", "smoke"], ["runs"], ["resume", "x"], [*HOURLY]):
            code, _, err = run_cli(capsys, *command)
            assert code == 2, command
            assert f"give --namespace or set {KFP_NAMESPACE}" in err
        monkeypatch.setenv(KFP_NAMESPACE, "team")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "admin.kubeconfig"))

        def wait_for_a_node(run: Any) -> None:
            waiting = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
            labels = {"pipeline/runid": run.run_id, "celebdit.io/step": "train"}
            kube.put("pods", "train-pod", metadata={"labels": labels}, status={"phase": "Pending", "conditions": [waiting]})
            server.on_get_run = lambda run: server.end(run, "FAILED")

        server.on_get_run = wait_for_a_node
        code, _, err = run_cli(capsys, "submit", "smoke", "--wait")
        assert code == 75, err
        assert "train: its pod train-pod waits: 0/3 nodes are available" in err, "pods are looked for in the user's namespace"
        (run_id,) = server.runs
        server.on_get_run = lambda run: None
        assert run_id in run_cli(capsys, "runs")[2]
        assert run_cli(capsys, "resume", run_id)[0] == 0
        assert [run_cli(capsys, *HOURLY, *rest)[0] for rest in ((), ("--delete",))] == [0, 0]
        checks = json.loads(run_cli(capsys, "doctor", "--cluster", "--preset", "smoke", "--json")[1])["checks"]
        assert "namespace team" in next(check["found"] for check in checks if check["name"] == "kubernetes")
        assert {entry.namespace for entry in [*server.experiments.values(), *server.pipelines.values()]} == {"team"}
        server.faults.append(Fault("run_service_list_runs", 403, text="User is not authorized to list runs"))
        code, _, err = run_cli(capsys, "runs")
        assert code == 2
        assert "ask for access to namespace team" in err


def test_a_step_whose_image_cannot_be_pulled_says_so_while_it_waits(
    endpoint: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kube_server(tmp_path) as kube:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "admin.kubeconfig"))

        def wait_for_the_image(run: Any) -> None:
            waiting = {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown: sha256:aaaa"}}
            labels = {"pipeline/runid": run.run_id, "celebdit.io/step": "preflight"}
            kube.put("pods", "first", metadata={"labels": labels}, status={"phase": "Pending", "containerStatuses": [{"state": waiting}]})
            endpoint.on_get_run = lambda run: endpoint.end(run, "CANCELED")

        endpoint.on_get_run = wait_for_the_image
        code, _, err = run_cli(capsys, "submit", "smoke", "--wait")
    assert code == 130
    assert "preflight: its pod first waits: ErrImagePull: manifest unknown: sha256:aaaa" in err


def test_a_step_whose_node_was_drained_starts_again_and_its_run_succeeds(
    endpoint: FakeKfp, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(endpoint, config).run_id
    attempts = [("train", "RUNNING"), ("train", "FAILED"), ("train", "RUNNING"), ("train", "SUCCEEDED")]
    progress(endpoint, [*attempts, ("register", "SUCCEEDED")], "SUCCEEDED")
    code, out, err = run_cli(capsys, "runs", run_id, "--wait", "--json")
    assert (code, json.loads(out)["steps"]["train"]) == (0, "SUCCEEDED"), err
    shown = [line for line in err.splitlines() if line.startswith("train: ")]
    assert len(shown) == 4, err
    assert [words.split()[1].strip(",:") for words in shown] == ["started", "failed", "started", "finished"]
