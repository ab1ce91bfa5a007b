"""`celebdit run` where the configured MLflow server does not answer, with the limits of a person's shell: none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.command import celebdit
from celebdit_testing.http_server import FixedAnswer, answering
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY

pytestmark = [pytest.mark.fault, pytest.mark.slow]
AGAIN = "run it again when MLflow is back"
LOGIN = b"HTTP/1.1 401 x\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, rclone_endpoint: str) -> Iterator[FixedAnswer]:
    for name in ("TIMEOUT", "MAX_RETRIES"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in {
        "CELEBDIT_STORE": "s3://bucket/without-mlflow",
        "AWS_ENDPOINT_URL": rclone_endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }.items():
        monkeypatch.setenv(name, value)
    with answering() as answers:
        yield answers


@pytest.mark.parametrize(
    ("raw", "delay_s", "code", "message", "action", "most_requests"),
    [
        pytest.param(b"", 0.0, 75, "MLflow at {} cannot be reached", AGAIN, 6, id="hangs-up"),
        pytest.param(LOGIN, 600.0, 75, "MLflow at {} cannot be reached: Read timed out", AGAIN, 6, id="silent"),
        pytest.param(LOGIN, 0.0, 2, "MLflow at {} refuses access: it asks for a login", "check MLFLOW_TRACKING_USERNAME", 12, id="login"),
    ],
)
def test_a_run_ends_with_the_reason_and_the_next_action_after_few_requests(
    raw: bytes, delay_s: float, code: int, message: str, action: str, most_requests: int, server: FixedAnswer, tmp_path: Path
) -> None:
    server.answer_with(raw, delay_s=delay_s)
    ran = celebdit("run", "smoke", "--json", home=tmp_path / "home", MLFLOW_TRACKING_URI=server.address)
    assert ran.code == code, ran.err
    assert f"celebdit: preflight: {message.format(server.address)}" in ran.err
    assert action in ran.err
    assert 0 < len(server.requests) <= most_requests, server.requests
