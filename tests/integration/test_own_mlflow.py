"""MLflow servers of the user's own: at any address, stopped, slow, or behind a login."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.command import Finished, celebdit_here
from celebdit_testing.http_server import FixedAnswer, answering
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY

from pipeline.commands import run as run_command
from pipeline.runs import RunSummary
from pipeline.services import Services
from pipeline.session import Session, open_session

PAGE = b"HTTP/1.1 200 x\r\nContent-Type: text/html\r\nContent-Length: 33\r\nConnection: close\r\n\r\n<html>Please log in first</html>\n"
LOGIN = b"HTTP/1.1 401 x\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TOO_OLD = b"HTTP/1.1 200 x\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n2.22.2"


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, rclone_endpoint: str) -> Iterator[FixedAnswer]:
    with answering() as server:
        for name, value in {
            "CELEBDIT_STORE": "s3://bucket/own",
            "AWS_ENDPOINT_URL": rclone_endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "MLFLOW_TRACKING_URI": server.address,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
        yield server


@pytest.mark.parametrize(
    ("raw", "delay_s", "code", "message"),
    [
        pytest.param(None, 0.0, 75, "MLflow at http://127.0.0.1:9 cannot be reached: Connection refused", id="stopped"),
        pytest.param(PAGE, 20.0, 75, "MLflow at {} cannot be reached: Read timed out", id="slow"),
        pytest.param(LOGIN, 0.0, 2, "MLflow at {} refuses access: it asks for a login", id="login"),
    ],
)
def test_a_server_that_cannot_be_used_is_described_by_models_and_doctor(
    raw: bytes | None,
    delay_s: float,
    code: int,
    message: str,
    odd: FixedAnswer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if raw is None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    else:
        odd.answer_with(raw, delay_s=delay_s)
    listed = celebdit_here("models", "list", home=tmp_path / "home", capture=capsys)
    assert (listed.code, message.format(odd.address) in listed.err) == (code, True), listed.err
    checked = celebdit_here("doctor", "--json", home=tmp_path / "home", capture=capsys)
    assert message.format(odd.address) in mlflow_check(checked)["found"]
    assert checked.code == 2, "a failed check"
    assert raw is None or odd.requests


def mlflow_check(finished: Finished) -> dict[str, Any]:
    (check,) = [check for check in json.loads(finished.out)["checks"] if check["name"] == "mlflow"]
    assert check["state"] == "fail"
    return dict(check)


def test_a_login_page_and_an_old_server_are_described(odd: FixedAnswer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd.answer_with(PAGE)
    listed = celebdit_here("models", "list", home=tmp_path / "home", capture=capsys)
    assert listed.code == 2, listed.err
    assert f"{odd.address} does not answer as MLflow does: it answers with a page, perhaps for a login" in listed.err
    assert (
        "does not answer as MLflow does" in mlflow_check(celebdit_here("doctor", "--json", home=tmp_path / "home", capture=capsys))["found"]
    )
    odd.answer_with(TOO_OLD)
    check = mlflow_check(celebdit_here("doctor", "--json", home=tmp_path / "home", capture=capsys))
    assert "is version 2.22.2, the oldest that is supported is 3.0" in check["found"]
    assert "upgrade the server" in check["fix"]


SUMMARY = RunSummary.model_validate(
    {
        "run_id": "smoke-1",
        "config_digest": "c",
        "run_key": "k",
        "dataset": {"digest": "d" * 64, "num_images": 1, "rejected": {}, "uri": "s3://bucket/d"},
        "training_steps": 1,
        "checkpoint": {"digest": "c" * 64, "uri": "s3://bucket/c"},
        "score": {"name": "eval/x", "value": 1.0},
        "metrics": {},
        "gate": {"decision": "pass", "reasons": []},
        "model": None,
        "mlflow": {"tracking_uri": "http://127.0.0.1:5000", "run_id": "r", "run_url": "http://127.0.0.1:5000/#/r", "model_uri": None},
        "samples": "samples.png",
        "seconds": {},
    }
)


def test_only_servers_that_the_command_started_are_said_to_have_stopped(
    odd: FixedAnswer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_session(tmp_path / "home") as session:
        own = session
    assert "127.0.0.1" in odd.address
    embedded = Session(tmp_path / "home", Services(tmp_path / "home"))
    for used, stopped in ((own, False), (embedded, True)):
        run_command._finish(SUMMARY, used, as_json=False, servers_stay=used.stays)
        assert ("its server has stopped" in capsys.readouterr().err) == stopped
