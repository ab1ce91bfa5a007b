"""MLflow's own S3 client, which it uses where its server serves no artifacts, against a store that refuses."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celebdit_testing.http_server import FixedAnswer, answering
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from components.errors import CelebditError
from components.tracking.mlflow_errors import translate_mlflow_errors

URI = "http://mlflow.example:5000"


def refusing(status: int, code: str, message: str = "x", more: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="module")
def store() -> Iterator[FixedAnswer]:
    with answering() as server:
        yield server


@pytest.fixture
def calls(store: FixedAnswer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Callable[[], object]]:
    """An upload and a listing by MLflow's client."""
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store.address)
    (tmp_path / "file").write_text("x")
    repository = S3ArtifactRepository("s3://bucket/artifacts")
    return [lambda: repository.log_artifact(str(tmp_path / "file")), lambda: repository.list_artifacts("images")]


REDIRECT = b"HTTP/1.1 302 x\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "code", "message", "hint"),
    [
        pytest.param(REDIRECT, 2, "redirects without end", "a proxy or a login page may answer", id="redirections"),
        pytest.param(
            refusing(301, "PermanentRedirect", more="<Region>eu-west-1</Region>"),
            *(2, "301 PermanentRedirect: the bucket is in region eu-west-1", "set AWS_REGION=eu-west-1"),
            id="region",
        ),
        pytest.param(refusing(403, "AccessDenied"), 2, "the right s3:(PutObject|ListBucket) is missing", "grant the right", id="denied"),
        pytest.param(refusing(404, "NoSuchBucket"), 2, "404 NoSuchBucket", "--default-artifact-root", id="no-bucket"),
        pytest.param(refusing(400, "ExpiredToken"), 2, "400 ExpiredToken", "get new credentials", id="expired"),
        pytest.param(refusing(503, "SlowDown"), 75, "failed: 503 SlowDown", "run it again when object storage is back", id="slow-down"),
        pytest.param(b"", 75, "failed: (ConnectionClosedError|EndpointConnectionError)", "run it again", id="hung-up"),
    ],
)
def test_what_the_store_answers_is_said_of_the_store(
    raw: bytes, code: int, message: str, hint: str, store: FixedAnswer, calls: list[Callable[[], object]]
) -> None:
    for call in calls:
        store.answer_with(raw)
        with pytest.raises(CelebditError) as raised, translate_mlflow_errors(URI):
            call()
        assert store.requests
        assert raised.value.exit_code == code
        assert re.search(rf"^object storage of MLflow's artifacts .*{message}", raised.value.message), raised.value.message
        assert hint in str(raised.value.hint)
