"""Submitting, following, resuming and scheduling, against a server that speaks the real API."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.kfp_server import FakeKfp, Fault, kfp_server

from components.errors import BadInput, GateFailed, Interrupted, TemporaryFailure
from components.events import Event
from pipeline.cli import main
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import RunConfig, load_config
from pipeline.images import Images
from pipeline.kubeflow import COOKIES, ENDPOINT, NAMESPACE, TOKEN, KfpAddress, Kubeflow
from pipeline.submit import STEPS, Timing, failure_of, follow, resume, schedule, submit, unschedule

CANARY = "canary-kfp-token-0123456789"
DIGESTS = {"cpu": "registry.example/cpu@sha256:" + "a" * 64, "gpu": "registry.example/gpu@sha256:" + "b" * 64}
OPTIONS = CompileOptions(images=Images(**DIGESTS), preset="smoke")


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("smoke")


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Compile each configuration once: KFP's compiler takes a second, and the same configuration gives the same bytes."""
    compiled: dict[str, bytes] = {}

    def remembered(config: RunConfig, target: Path, options: CompileOptions) -> str:
        key = config.digest() + repr(options)
        if key not in compiled:
            compile_pipeline(config, target, options)
            compiled[key] = target.read_bytes()
        target.write_bytes(compiled[key])
        return hashlib.sha256(compiled[key]).hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.submit.compile_pipeline", remembered)
        yield


@pytest.fixture
def server() -> Iterator[FakeKfp]:
    with kfp_server() as fake:
        yield fake


def connect(server: FakeKfp, **options: Any) -> Kubeflow:
    address = KfpAddress(server.url, options.pop("namespace", None), token=options.pop("token", None))
    return Kubeflow(address, sleep=lambda seconds: None, deadline_s=options.pop("deadline_s", 5.0), **options)


def submitted(server: FakeKfp, config: RunConfig, **options: Any) -> Any:
    return submit(config, OPTIONS, connect(server), experiment="faces", **options)


def test_a_submission_uploads_a_version_named_by_its_digest_and_starts_one_run(server: FakeKfp, config: RunConfig) -> None:
    found = submitted(server, config)
    (version,) = server.versions.values()
    (run,) = server.runs.values()
    assert version.name == found.version
    assert version.name.startswith("sha256-")
    assert run.display_name.startswith("smoke-")
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert server.experiments[run.experiment_id].display_name == "faces"
    assert found.url == f"{server.url}/#/runs/details/{run.run_id}"
    assert found.is_new
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
    found = submitted(server, config)
    assert list(server.runs) == [found.run_id]
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_an_answer_that_comes_too_late_is_looked_for(server: FakeKfp, config: RunConfig) -> None:
    server.faults.append(Fault("run_service_create_run", "slow", text="1.5"))
    kubeflow = connect(server, request_timeout_s=0.5)
    found = submit(config, OPTIONS, kubeflow, experiment="faces")
    assert list(server.runs) == [found.run_id]


@pytest.mark.parametrize("operation", WRITES[:3])
def test_somebody_faster_is_joined_after_409(server: FakeKfp, config: RunConfig, operation: str) -> None:
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
    found = submitted(server, config)
    assert found.run_id == done[1].run_id
    assert [run.storage_state for run in server.runs.values()] == ["AVAILABLE", "ARCHIVED"]
    assert [run.state for run in server.runs.values()] == ["PENDING", "CANCELED"]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not know who you are"), (403, "not allowed"), (404, "check --endpoint"), (400, "by order of the test")]
)
def test_a_refusal_is_bad_input_with_the_way_out_and_is_not_repeated(server: FakeKfp, config: RunConfig, status: int, said: str) -> None:
    server.faults.append(Fault("pipeline_service_list_pipelines", status, times=99))
    with pytest.raises(BadInput) as refused:
        submitted(server, config)
    assert said in f"{refused.value.message} {refused.value.hint}"
    assert str(status) in refused.value.message
    assert server.count("pipeline_service_list_pipelines") == 1
    assert not server.runs


@pytest.mark.parametrize("kind", [500, "drop"])
def test_a_server_that_stays_broken_is_a_temporary_failure_within_the_deadline(server: FakeKfp, config: RunConfig, kind: int | str) -> None:
    server.faults.append(Fault(".*", kind, times=10**6))
    with pytest.raises(TemporaryFailure, match=server.url):
        submit(config, OPTIONS, connect(server, deadline_s=0.3), experiment="faces")


def test_nobody_at_home_is_a_temporary_failure(config: RunConfig) -> None:
    with pytest.raises(TemporaryFailure, match="cannot be reached"):
        submit(config, OPTIONS, Kubeflow(KfpAddress("http://127.0.0.1:9", None), deadline_s=0.1), experiment="faces")


def test_a_login_page_is_recognised(server: FakeKfp) -> None:
    server.faults.append(Fault("healthz_service_get_healthz", "html"))
    with pytest.raises(BadInput, match="login page"):
        connect(server).multi_user()


def test_a_server_with_namespaces_is_given_one_and_a_token(config: RunConfig) -> None:
    with kfp_server(multi_user=True, token=CANARY) as server:
        with pytest.raises(BadInput, match="401"):
            connect(server, namespace="team").multi_user()
        with pytest.raises(BadInput, match="none was named"):
            connect(server, token=CANARY).multi_user()
        found = submit(config, OPTIONS, connect(server, namespace="team", token=CANARY), experiment="faces")
        assert list(server.runs) == [found.run_id]
        assert {entry.namespace for entry in server.experiments.values()} == {"team"}


def progress(server: FakeKfp, script: list[tuple[str, str]], end: str) -> None:
    """Let every look at the run move it one step further."""

    def advance(run: Any) -> None:
        if script:
            name, state = script.pop(0)
            run.state = "RUNNING"
            server.step(run, name, state, "main: Error (exit code 3)" if state == "FAILED" else None)
        elif run.state not in ("FAILED", "CANCELED"):
            server.end(run, end)

    server.on_get_run = advance


def test_following_tells_each_step_once_and_returns_the_outcome(server: FakeKfp, config: RunConfig) -> None:
    script = [(name, state) for name in STEPS for state in ("RUNNING", "RUNNING", "SUCCEEDED")]
    progress(server, script, "SUCCEEDED")
    events: list[Event] = []
    run = follow(submitted(server, config).run_id, connect(server), on_event=events.append, sleep=lambda seconds: None)
    assert failure_of(run) is None
    assert [(event.step, event.kind) for event in events] == [(name, kind) for name in STEPS for kind in ("started", "finished")]


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


def test_following_waits_for_a_server_that_is_away_for_a_while(server: FakeKfp, config: RunConfig) -> None:
    run_id = submitted(server, config).run_id
    progress(server, [("ingest", "RUNNING")], "SUCCEEDED")
    server.faults += [Fault("run_service_get_run", kind, times=2) for kind in ("drop", 500, "lost")]
    run = follow(run_id, connect(server), on_event=lambda event: None, sleep=lambda seconds: None)
    assert run.state == "SUCCEEDED"
    server.faults.append(Fault("run_service_get_run", 502, times=10**6))
    ticks = iter(range(10**6))
    with pytest.raises(TemporaryFailure, match="502"):
        follow(run_id, connect(server), on_event=lambda event: None, patience_s=3, sleep=lambda seconds: None, clock=lambda: next(ticks))


def failed_run(server: FakeKfp, config: RunConfig, state: str = "FAILED") -> Any:
    run = server.runs[submitted(server, config).run_id]
    server.end(run, state)
    return run


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_resume_starts_the_failed_steps_of_the_same_run_again(server: FakeKfp, config: RunConfig, state: str) -> None:
    run = failed_run(server, config, state)
    found = resume(run.run_id, connect(server))
    assert (found.run_id, found.is_new, run.state) == (run.run_id, False, "RUNNING")


def test_resume_survives_a_lost_answer(server: FakeKfp, config: RunConfig) -> None:
    run = failed_run(server, config)
    server.faults.append(Fault("run_service_retry_run", "lost"))
    assert resume(run.run_id, connect(server)).run_id == run.run_id
    assert run.state == "RUNNING"


def test_resume_of_a_run_that_the_server_cannot_retry_starts_one_of_the_same_version(server: FakeKfp, config: RunConfig) -> None:
    run = failed_run(server, config)
    server.faults.append(Fault("run_service_retry_run", 404, text="workflow not found"))
    found = resume(run.run_id, connect(server))
    assert found.is_new
    assert server.runs[found.run_id].pipeline_version_reference == run.pipeline_version_reference
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


@pytest.mark.parametrize("timing", [Timing(cron="0 0 3 * * 1"), Timing(every_s=3600)])
def test_a_schedule_is_made_once_and_deleted(server: FakeKfp, config: RunConfig, timing: Timing) -> None:
    server.faults.append(Fault("recurring_run_service_create_recurring_run", "lost"))
    first, _ = schedule(config, OPTIONS, connect(server), experiment="faces", timing=timing)
    second, is_new = schedule(config, OPTIONS, connect(server), experiment="faces", timing=timing)
    assert not is_new
    assert list(server.recurring) == [first.recurring_run_id] == [second.recurring_run_id]
    (entry,) = server.recurring.values()
    assert (entry.mode, entry.max_concurrency, entry.no_catchup) == ("ENABLE", "1", True)
    assert unschedule("smoke", connect(server), experiment="faces", timing=timing) == [first.display_name]
    assert not server.recurring
    with pytest.raises(BadInput, match="has no schedule"):
        unschedule("smoke", connect(server), experiment="faces", timing=timing)


def test_data_on_this_machine_is_refused_before_anything_is_sent(server: FakeKfp, tmp_path: Path) -> None:
    own = load_config("smoke", [f"data.source={tmp_path / 'faces.zip'}"])
    with pytest.raises(BadInput, match=r"data\.source .* cannot see it"):
        submit(own, OPTIONS, connect(server), experiment="faces")
    assert not server.requests


# --- the commands, as their users run them


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "images.lock.json"
    path.write_text(json.dumps({"images": DIGESTS, "git_commit": "abc", "pins_sha256": {"cpu": "1", "gpu": "2"}}))
    monkeypatch.chdir(tmp_path)
    for name in (ENDPOINT, NAMESPACE, TOKEN, COOKIES):
        monkeypatch.delenv(name, raising=False)
    return path


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_submit_wait_shows_the_steps_and_ends_with_the_outcome(
    server: FakeKfp, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.0})
    progress(server, [(name, "SUCCEEDED") for name in STEPS], "SUCCEEDED")
    code, out, err = run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--wait", "--json")
    facts = json.loads(out)
    assert code == 0, err
    assert facts["steps"] == dict.fromkeys(STEPS, "SUCCEEDED")
    assert facts["gate"] == "pass"
    assert facts["url"] in err
    assert "train: finished" in err
    progress(server, [("gate", "SUCCEEDED"), ("register", "SKIPPED")], "SUCCEEDED")
    assert run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--wait", "--again")[0] == 1
    progress(server, [("train", "FAILED")], "FAILED")
    code, _, err = run_cli(capsys, "submit", "smoke", "training.total_steps=14", "--endpoint", server.url, "--wait")
    assert code == 3
    assert "celebdit: train: main: Error (exit code 3)\n  its log is on the run's page" in err


def test_runs_are_listed_newest_first_and_shown(
    server: FakeKfp, config: RunConfig, lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, server.url)
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


def test_a_token_gets_into_no_output_pipeline_or_address(
    lock: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "canary-aws-secret-9876543210"
    monkeypatch.setenv(TOKEN, CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with kfp_server(token=CANARY) as server:
        server.faults.append(Fault("run_service_create_run", 400, text=f"who sends Bearer {CANARY}?"))
        code, out, err = run_cli(capsys, "submit", "smoke", "--endpoint", server.url, "--json")
        assert code == 2
        assert run_cli(capsys, "submit", "smoke", "--endpoint", server.url)[0] == 0
        sent = b"\n".join(server.raw).decode()
    for text in (out, err, sent, *server.packages.values(), " ".join(map(str, Path.cwd().iterdir()))):
        assert CANARY not in text
        assert secret not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "smoke"], "nobody said where Kubeflow Pipelines is"),
        (["submit", "smoke", "--endpoint", "https://me:secret@host"], "contains credentials"),
        (["submit", "smoke", "--endpoint", "http://host/#/runs"], "is not an address"),
        (["submit", "smoke", "--images", "absent.json", "--endpoint", "http://127.0.0.1:9"], "absent.json does not exist"),
        (["submit", "smok"], "neither a preset nor a file"),
        (["submit", "smoke", "data.licence=CelebA"], "must be accepted"),
        (["resume"], "Missing argument 'RUN'"),
        (["schedule", "smoke"], "either --cron or --every"),
        (["schedule", "smoke", "--cron", "0 3 * * *"], "has 5 fields"),
        (["schedule", "smoke", "--every", "5"], "not in the range"),
        (["runs", "--limit", "0"], "not in the range"),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_exit_code_2(
    lock: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = run_cli(capsys, *arguments)
    assert (code, out) == (2, "")
    first, *rest = err.strip().splitlines()
    assert said in first
    assert len(rest) <= 1
    assert "secret@" not in err
