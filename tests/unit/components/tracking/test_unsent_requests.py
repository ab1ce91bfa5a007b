"""Requests to MLflow that cannot be made because of a variable: bad input that names it, not an outage, and no secret in the error."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.http_server import FixedAnswer, answering
from celebdit_testing.tls import tls_proxy

from components.errors import BadInput
from components.settings import Settings
from components.tracking.client import Tracking
from components.tracking.server_version import check_server_version

ENVIRONMENT = {"CELEBDIT_STORE": "s3://bucket/prefix", "CELEBDIT_RUN_ID": "r1"}
_HEADER = "a header cannot hold MLFLOW_TRACKING_TOKEN"
_EMPTY = "a file of certificates for MLflow at .* is damaged or has none"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FixedAnswer]:
    for name, value in {"TIMEOUT": "2", "MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with answering() as server:
        yield server


def refusals(uri: str) -> list[BadInput]:
    """The errors of the two kinds of requests: those of MLflow's client, and the first one, which asks for the version."""
    with pytest.raises(BadInput) as of_client:
        Tracking(Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri})).find_run({"a": "b"})
    with pytest.raises(BadInput) as of_version:
        check_server_version(uri)
    return [of_client.value, of_version.value]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "canary-1\ncanary-2"}, _HEADER),
        ({"MLFLOW_TRACKING_TOKEN": "canary-1\n"}, _HEADER),
        ({"MLFLOW_TRACKING_TOKEN": "canary-1\r"}, _HEADER),
        ({"MLFLOW_TRACKING_TOKEN": "canary-€"}, _HEADER),
        ({"MLFLOW_WORKSPACE": "a\nb"}, "MLFLOW_WORKSPACE"),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "Yes"}, "MLFLOW_TRACKING_INSECURE_TLS cannot be used: .*'true', 'false'.* got Yes"),
        ({"MLFLOW_TRACKING_AWS_SIGV4": "2"}, "MLFLOW_TRACKING_AWS_SIGV4 cannot be used"),
        ({"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0x10"}, "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR cannot be used: Failed to convert '0x10'"),
        ({"MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "1,5"}, "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER cannot be used"),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "/a.pem"}, "are both set"),
        ({"MLFLOW_HTTP_REQUEST_TIMEOUT": "0"}, "MLFLOW_HTTP_REQUEST_TIMEOUT is '0', not a whole number from 1"),
    ],
)
def test_a_variable_that_no_request_can_be_made_with_is_named(
    variables: dict[str, str], reason: str, server: FixedAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for error in refusals(server.address):
        assert re.search(reason, error.message)
        assert "canary" not in f"{error.message} {error.hint}"
    assert not server.requests


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file of certificates .*/authority of mlflow.pem does not exist"),
        ("no certificate", _EMPTY),
        ("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n", _EMPTY),
    ],
)
def test_a_file_of_certificates_that_cannot_be_read_is_no_outage(
    name: str, content: str | None, reason: str, server: FixedAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authority of mlflow.pem"
    if content is not None:
        file.write_text(content)
    with tls_proxy(server.address, tmp_path) as (address, authority):
        if "CLIENT" in name:
            monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
        monkeypatch.setenv(name, str(file))
        for error in refusals(address):
            assert re.search(reason, error.message)
            assert name in str(error.hint)
    assert not server.requests


@pytest.mark.parametrize("uri", ["http://host:5000/#/experiments/1", "http://host:5000/?workflowType=machine_learning", "http://host/p#"])
def test_the_address_of_a_page_is_refused_before_any_request(uri: str) -> None:
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI is the address of a page of MLflow"):
        Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri})
