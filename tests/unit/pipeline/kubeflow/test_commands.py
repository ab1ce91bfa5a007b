"""The commands for a cluster, as their users type them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from celebdit_testing.kfp_server import FakeKfp, Fault, kfp_server
from celebdit_testing.kube_server import kube_server
from celebdit_testing.submissions import progress, run_cli, submitted

from components.environment import KFP_COOKIES, KFP_ENDPOINT, KFP_TOKEN, LOG_LEVEL
from pipeline.config import RunConfig
from pipeline.follow import follow
from pipeline.steps import step_names

CANARY = "canary-kfp-token-0123456789"


def test_submit_wait_shows_the_steps_and_ends_with_the_outcome(
    server: FakeKfp, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    progress(server, [(name, "SUCCEEDED") for name in step_names()], "SUCCEEDED")
    code, out, err = run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--wait", "--json")
    facts = json.loads(out)
    assert code == 0, err
    assert facts["steps"] == dict.fromkeys(step_names(), "SUCCEEDED")
    assert facts["gate"] == "pass"
    assert facts["url"] in err
    assert "train: finished" in err
    progress(server, [("gate", "SUCCEEDED"), ("register", "SKIPPED")], "SUCCEEDED")
    assert run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--wait", "--again")[0] == 1
    progress(server, [("train", "FAILED")], "FAILED")
    code, _, err = run_cli(capsys, "submit", "smoke", "training.total_steps=14", "--endpoint", server.url, "--wait")
    assert code == 3
    assert "celebdit: train: main: Error (exit code 3)\n  see the log on the run's page" in err


def test_submit_names_what_would_stay_pending_and_wait_shows_the_schedulers_reason(
    server: FakeKfp, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    reason = "0/1 nodes are available: 1 Insufficient cpu."
    with kube_server(tmp_path) as kube:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "admin.kubeconfig"))
        kube.put("nodes", "small", status={"allocatable": {"cpu": "2", "memory": "3900Mi"}})

        def add_pod(run: Any) -> None:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason}
            labels = {"pipeline/runid": run.run_id, "celebdit.io/step": "train"}
            kube.put("pods", "celebdit-train", metadata={"labels": labels}, status={"phase": "Pending", "conditions": [condition]})
            other = {"pipeline/runid": "another", "celebdit.io/step": "gate"}
            kube.put("pods", "celebdit-gate", metadata={"labels": other}, status={"phase": "Pending", "conditions": [condition]})
            server.step(run, "train", "RUNNING")
            server.on_get_run = lambda run: server.end(run, "CANCELED")

        server.on_get_run = add_pod
        code, _, err = run_cli(capsys, "submit", "smoke", "resources.cpu=4000m", "--endpoint", server.url, "--wait")
        assert code == 130
        assert "train, evaluate would stay Pending: each requests 4000m CPU and 2Gi, the largest node that they may use has 2 CPU" in err
        assert f"train: its pod celebdit-train waits: {reason}" in err
        assert "celebdit-gate" not in err
        assert "would stay Pending" not in run_cli(capsys, "submit", "smoke", "--endpoint", server.url)[2]


def test_submit_says_everything_that_is_missing_at_once(
    lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_ENDPOINT, "")
    lock.unlink()
    code, _, err = run_cli(capsys, "submit", "celebahq256-b", "evaluation.weights=w.pth")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 4, err
    for number, words in enumerate(("images.lock.json", KFP_ENDPOINT, "must be accepted", "evaluation.weights w.pth is on this machine")):
        assert words in lines[number], err


def test_the_doctor_finds_everything_at_once_with_nothing_configured(
    lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_ENDPOINT, "")
    lock.unlink()
    code, out, err = run_cli(capsys, "doctor", "--cluster", "--preset", "celebahq256-b", "--json")
    assert code == 2
    failed = {check["name"]: check for check in json.loads(out)["checks"] if check["state"] == "fail"}
    assert set(failed) == {"kubeflow", "kubernetes", "images", "licence"}, err
    assert KFP_ENDPOINT in failed["kubeflow"]["found"] + failed["kubeflow"]["fix"]
    assert "no Kubernetes cluster is configured" in failed["kubernetes"]["found"]
    assert all(check["fix"] for check in failed.values())
    accepted = run_cli(capsys, "doctor", "--cluster", "--preset", "celebahq256-b", "--accept-license", "me")[2]
    assert "accepted by me" in accepted


def test_the_doctor_checks_what_a_preset_needs_of_this_machine(
    lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CELEBDIT_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    arguments = ("doctor", "--preset", "celebahq256-b", "--home", str(home), "--json", "resources.processes=64")
    code, out, _ = run_cli(capsys, *arguments)
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert code == 2
    assert {name for name in ("devices", "licence", "weights") if checks[name]["state"] == "fail"} == {"devices", "licence", "weights"}
    assert "resources.device is cuda with 64 processes" in checks["devices"]["found"]
    assert "celebdit weights add" in checks["weights"]["fix"]
    sha256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    stored = home / "s3" / "celebdit" / "store" / "weights" / f"{sha256}.pth"
    stored.parent.mkdir(parents=True)
    stored.touch()
    checks = {check["name"]: check for check in json.loads(run_cli(capsys, *arguments)[1])["checks"]}
    assert checks["weights"]["state"] == "ok"
    smoke = json.loads(run_cli(capsys, "doctor", "--preset", "smoke", "--home", str(home), "--json")[1])["checks"]
    assert {check["state"] for check in smoke if check["name"] in ("devices", "licence", "memory", "source")} == {"ok"}


def test_a_cluster_that_may_not_be_read_does_not_stop_a_submission(
    server: FakeKfp, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    progress(server, [(name, "SUCCEEDED") for name in step_names()], "SUCCEEDED")
    with kube_server(tmp_path) as kube:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "pipeline-runner.kubeconfig"))
        code, _, err = run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--wait")
        assert kube.count("list nodes") == 1
    assert code == 0, err
    assert err.count("not shown why pods wait: Kubernetes does not allow to list pods") == 1


def test_a_printed_command_names_the_server_of_the_command_line(
    server: FakeKfp, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ("--endpoint", server.url, "--namespace", "team-a")
    code, _, err = run_cli(capsys, "submit", "smoke", *named)
    assert code == 0, err
    (run_id,) = server.runs
    assert err.rstrip().endswith(f"celebdit runs {run_id} {' '.join(named)}")
    server.step(server.runs[run_id], "train", "FAILED", "exit code 75")
    server.end(server.runs[run_id], "FAILED")
    for options in ((), ("--wait",)):
        _, _, err = run_cli(capsys, "runs", run_id, *options, *named)
        assert f"celebdit resume {run_id} {' '.join(named)}\n" in err
    monkeypatch.setenv(KFP_ENDPOINT, server.url)
    code, _, err = run_cli(capsys, "submit", "smoke", "--again")
    assert err.rstrip().endswith(f"celebdit runs {list(server.runs)[-1]}")


def test_the_command_for_another_run_is_the_submission_again(server: FakeKfp, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submission = ("submit", "smoke", "training.total_steps=14", "--endpoint", server.url, "--experiment", "mine", "--cache", "ingest")
    assert run_cli(capsys, *submission)[0] == 0
    (run_id,) = server.runs
    server.end(server.runs[run_id], "FAILED")
    _, _, err = run_cli(capsys, *submission)
    again = shlex.split(err.rpartition("or for another run celebdit ")[2])
    assert run_cli(capsys, *again)[0] == 0
    first, second = server.runs.values()
    assert second.display_name.startswith(first.display_name), "the same pipeline"
    assert second.experiment_id == first.experiment_id
    server.end(server.runs[run_id], "SUCCEEDED")
    code, _, err = run_cli(capsys, "resume", run_id, "--endpoint", server.url)
    assert code == 2
    assert "for another run, submit it as before and add --again" in err


def test_the_command_after_compiling_submits_the_same_pipeline(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "p.yaml"
    options = ("--images", str(lock), "--cache", "ingest", "--debug-pause", "train")
    code, _, err = run_cli(capsys, "compile", "smoke", "training.total_steps=14", *options, "--output", str(output))
    assert code == 0, err
    command = shlex.split(err.partition("celebdit ")[2].partition(", or upload")[0])
    assert command == ["submit", "smoke", "training.total_steps=14", *options]


def test_runs_are_listed_newest_first_and_shown(
    server: FakeKfp, config: RunConfig, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_ENDPOINT, server.url)
    assert "there are no runs yet" in run_cli(capsys, "runs")[2]
    ids = [submitted(server, config, again=True, clock=lambda at=at: float(at)).run_id for at in range(12)]
    server.step(server.runs[ids[-1]], "train", "FAILED", "exit code 75")
    server.end(server.runs[ids[-1]], "FAILED")
    code, out, err = run_cli(capsys, "runs", "--limit", "11", "--json")
    assert code == 0
    assert [run["run_id"] for run in json.loads(out)["runs"]] == ids[::-1][:11]
    assert err.splitlines()[0].split()[:2] == [ids[-1], "FAILED"]
    code, _, err = run_cli(capsys, "runs", ids[-1])
    assert code == 0
    assert f"celebdit resume {ids[-1]}" in err
    assert "train        FAILED" in err


def test_looking_for_the_runs_of_an_experiment_does_not_make_it(
    server: FakeKfp, config: RunConfig, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KFP_ENDPOINT, server.url)
    run_id = submitted(server, config).run_id
    before = len(server.requests)
    code, out, err = run_cli(capsys, "runs", "--experiment", "facse", "--json")
    assert (code, json.loads(out)) == (0, {"runs": []})
    assert "there are no runs yet" in err
    assert [experiment.display_name for experiment in server.experiments.values()] == ["faces"]
    assert not [name for name in server.requests[before:] if "create" in name]
    assert [run["run_id"] for run in json.loads(run_cli(capsys, "runs", "--experiment", "faces", "--json")[1])["runs"]] == [run_id]


@pytest.mark.parametrize(("variable", "sent_as"), [(KFP_TOKEN, "authorization: Bearer "), (KFP_COOKIES, "cookie: authservice_session=")])
def test_credentials_appear_in_no_output_pipeline_or_address(
    variable: str, sent_as: str, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, value = "canary-aws-secret-9876543210", (sent_as + CANARY).partition(": ")[2].removeprefix("Bearer ")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with kfp_server(token=CANARY if variable == KFP_TOKEN else None) as server:
        server.faults.append(Fault("run_service_create_run", 400, text=f"who sends {sent_as}{CANARY}?"))
        code, out, err = run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--json")
        assert code == 2
        assert run_cli(capsys, "submit", "smoke", "--endpoint", server.url)[0] == 0
        requests = b"\n".join(server.raw).decode()
        assert sent_as + CANARY in server.headers[-1], "the server receives it"
    for text in (out, err, requests, *server.packages.values(), " ".join(map(str, Path.cwd().iterdir()))):
        assert CANARY not in text
        assert secret not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "smoke"], "no Kubeflow Pipelines endpoint is configured"),
        (["submit", "smoke", "--endpoint", "https://me:secret@host"], "contains credentials"),
        (["submit", "smoke", "--endpoint", "http://host/#/runs"], "is not a valid URL"),
        (["submit", "smoke", "--images", "absent.json", "--endpoint", "http://127.0.0.1:9"], "image lock file absent.json not found"),
        (["submit", "smok"], "neither a preset nor a file"),
        (["submit", "smoke", "data.licence=CelebA", "--endpoint", "http://127.0.0.1:9"], "must be accepted"),
        (["resume"], "Missing argument 'RUN'"),
        (["schedule", "smoke"], "either --cron or --every"),
        (["schedule", "smoke", "--cron", "0 3 * * *"], "has 5 fields"),
        (["schedule", "smoke", "--cron", "daily"], "has 1 field"),
        (["schedule", "smoke", "--every", "5"], "not in the range"),
        (["runs", "--limit", "0"], "not in the range"),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_exit_code_2(
    lock: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run_cli(capsys, *arguments)
    assert (code, out) == (2, "")
    first, *rest = err.strip().splitlines()
    assert message in first
    assert len(rest) <= 1
    assert "secret@" not in err


def test_compile_passes_the_log_level_to_every_step_and_pauses_those_that_are_named(
    lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, count = tmp_path / "pipeline.yaml", len(step_names())
    for level, expected, paused in (("DEBUG", count, []), ("", 0, ["train", "gate"])):
        monkeypatch.setenv(LOG_LEVEL, level)
        pauses = [word for name in paused for word in ("--debug-pause", name)]
        assert run_cli(capsys, "compile", "smoke", "--images", str(lock), "--output", str(target), *pauses)[0] == 0
        assert target.read_text().count(f"name: {LOG_LEVEL}") == expected
        executors = yaml.safe_load(target.read_text().split("\n---")[0])["deploymentSpec"]["executors"]
        kept = {name for name, executor in executors.items() if "ARGO_DEBUG_PAUSE_AFTER" in str(executor["container"]["env"])}
        assert kept == {f"exec-{name}" for name in paused}


@pytest.mark.parametrize("command", [["submit"], ["schedule", "--every", "3600"]])
def test_all_that_is_missing_is_named_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CELEBDIT_KFP_ENDPOINT", raising=False)
    name, *options = command
    nowhere = ["--images", str(tmp_path / "absent.json")]
    code, _, err = run_cli(capsys, name, "celebahq256-b", *options, *nowhere, "data.source=faces", "data.licence_accepted_by=")
    assert code == 2
    assert [
        word
        for word in ("absent.json", "no Kubeflow Pipelines endpoint", "--accept-license", "faces is on this machine")
        if word not in err
    ] == []
