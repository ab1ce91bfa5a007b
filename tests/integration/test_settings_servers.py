"""Stores that need more than an address and two keys: a private authority, temporary credentials, an identity without keys.

Each is reached with the settings that a pod gets, in a child process that gets its environment as a rank does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celebdit_testing.faults import Proxy, fault_proxy
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.private_ca import TlsServer, tls_in_front_of
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY

from components.errors import BadInput
from components.preflight.preflight import check_credentials
from components.settings import missing_credentials
from components.system.child_environment import child_environment
from pipeline.services import Services

ROUND_TRIP = """
from components.settings import Settings
from components.storage import StoreUri, connect
settings = Settings.from_environment()
store = connect(settings.s3_endpoint, deadline_s=settings.storage_deadline_s)
uri = StoreUri.parse(settings.store_uri) / "settings" / "x"
store.put_bytes(uri, b"data")
print(store.get_bytes(uri).decode())
"""
MLFLOW = """
from components.settings import Settings
from components.tracking.client import Tracking
print(Tracking(Settings.from_environment()).experiment_id)
"""
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
RUN = {"CELEBDIT_RUN_ID": "settings", "CELEBDIT_STORE": "s3://bucket/settings", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what this machine, or another test, has for AWS."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def in_a_rank(code: str, settings: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = child_environment("rank", {**os.environ, **RUN, "CELEBDIT_STORAGE_DEADLINE_S": "1", **settings})
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def private_store(moto_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with tls_in_front_of(moto_endpoint, tmp_path_factory.mktemp("authority")) as server:
        yield server


def test_a_store_behind_a_private_authority(private_store: TlsServer) -> None:
    settings = {**KEYS, "AWS_ENDPOINT_URL": private_store.url}
    refused = in_a_rank(ROUND_TRIP, settings)
    assert "certificate" in refused.stderr.lower(), refused.stderr
    assert refused.returncode != 0
    reached = in_a_rank(ROUND_TRIP, {**settings, "AWS_CA_BUNDLE": str(private_store.ca_file)})
    assert reached.stdout == "data\n", reached.stderr


def test_an_mlflow_behind_a_private_authority_that_asks_for_a_token(embedded: Services, tmp_path: Path) -> None:
    token = embedded.wait().environment["MLFLOW_TRACKING_TOKEN"]
    with tls_in_front_of(embedded.wait().mlflow_url, tmp_path) as server:
        settings = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_TRACKING_TOKEN": token, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        refused = in_a_rank(MLFLOW, settings)
        assert refused.returncode != 0
        assert "certificate" in refused.stderr.lower()
        reached = in_a_rank(MLFLOW, {**settings, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(server.ca_file)})
        assert reached.stdout.strip().isdecimal(), reached.stderr


@pytest.fixture(scope="module")
def tokens(moto_endpoint: str) -> Iterator[Proxy]:
    """A store, and a server of tokens at the same address, whose proxy sees the session token of each request."""
    with fault_proxy(moto_endpoint, signed=False) as proxy:
        yield proxy


def test_temporary_credentials_are_sent_with_their_token(tokens: Proxy) -> None:
    tokens.requests.clear()
    tokens.session_tokens.clear()
    reached = in_a_rank(ROUND_TRIP, {**KEYS, "AWS_SESSION_TOKEN": "canary-session", "AWS_ENDPOINT_URL": tokens.endpoint})
    assert reached.stdout == "data\n", reached.stderr
    assert set(tokens.session_tokens) == {"canary-session"}
    assert len(tokens.session_tokens) == len(tokens.requests)


def test_a_web_identity_needs_no_keys(tokens: Proxy, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("header.payload.signature")
    identity = {"AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/celebdit", "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token")}
    servers = {"AWS_ENDPOINT_URL": tokens.endpoint, "AWS_ENDPOINT_URL_STS": tokens.endpoint, "AWS_REGION": "us-east-1"}
    assert missing_credentials(identity) == []
    tokens.requests.clear()
    tokens.session_tokens.clear()
    reached = in_a_rank(ROUND_TRIP, {**identity, **servers})
    assert reached.stdout == "data\n", reached.stderr
    assert "POST /" in tokens.requests, "the token was exchanged"
    (session,) = set(tokens.session_tokens)
    assert session
    assert len(tokens.session_tokens) == len(tokens.requests) - 1, "all but the exchange are signed with what it gave"


class Metadata(Handler):
    """The metadata service of a machine that has a role."""

    def do_PUT(self) -> None:  # noqa: N802
        self.answer(200, b"token", "text/plain")

    def do_GET(self) -> None:  # noqa: N802
        until = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"Code": "Success", "AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": until}
        self.answer(200, b"role" if self.target.endswith("/security-credentials/") else json.dumps(keys).encode())


def test_the_role_of_a_machine_and_a_file_of_credentials_are_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"):
        check_credentials({})
    with serving(Metadata) as address:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        assert check_credentials({}) == "found by boto3 (iam-role)"
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert check_credentials({}) == "found by boto3 (shared-credentials-file)"
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\n")
    with pytest.raises(BadInput, match="are not set"):
        check_credentials({})
