"""Encryption, storage class and who pays: every request has what is configured, MLflow's own uploads too."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from celebdit_testing.faults import Answer, Proxy, fault_proxy

from components.errors import BadInput
from components.storage import StoreUri, connect
from components.storage.addressing import mlflow_s3_environment
from components.storage.parameters import request_parameters
from components.storage.probe import probe

KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"


class Seen(list[tuple[str, str, dict[str, str]]]):
    """Method, path and headers of each request."""

    def rule(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        self.append((method, path, {name.lower(): value for name, value in headers.items()}))
        return None

    def of(self, name: str) -> list[tuple[str, str | None]]:
        """What requests there were, and the header `name` of each."""
        return [(f"{method} {path}", headers.get(name)) for method, path, headers in self]


@pytest.fixture
def seen(moto_endpoint: str) -> Iterator[tuple[Seen, Proxy]]:
    with fault_proxy(moto_endpoint) as proxy:
        requests = Seen()
        proxy.rule = requests.rule
        yield requests, proxy


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"CELEBDIT_S3_ENCRYPTION": "AES256"}, ("AES256", None)),
        ({"CELEBDIT_S3_ENCRYPTION": "aws:kms"}, ("aws:kms", None)),
        ({"CELEBDIT_S3_KMS_KEY_ID": KEY}, ("aws:kms", KEY)),
        ({"CELEBDIT_S3_ENCRYPTION": "aws:kms:dsse"}, ("aws:kms:dsse", None)),
    ],
)
def test_what_is_written_is_encrypted_as_configured(
    setting: dict[str, str],
    expected: tuple[str, str | None],
    seen: tuple[Seen, Proxy],
    prefix: StoreUri,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**setting, "CELEBDIT_S3_STORAGE_CLASS": "STANDARD_IA"}.items():
        monkeypatch.setenv(name, value)
    store = connect(seen[1].endpoint, deadline_s=10.0)
    (tmp_path / "big").write_bytes(bytes(8 * 2**20 + 1))
    digest = store.put_file(prefix / "big", tmp_path / "big")
    store.put_bytes(prefix / "small", b"x")
    store.copy(prefix / "small", prefix / "copy")
    assert store.get_file(prefix / "big", tmp_path / "back", sha256=digest) == digest
    for name in ("big", "small", "copy"):
        described = store.client.head_object(Bucket=prefix.bucket, Key=(prefix / name).key)
        assert (described.get("ServerSideEncryption"), described.get("SSEKMSKeyId")) == expected, name
        assert described["StorageClass"] == "STANDARD_IA", name
    assert store.get_head(prefix / "small", limit=9, listed=store.list(prefix)[-1]) == b"x"


def test_the_requester_pays_for_every_request(
    seen: tuple[Seen, Proxy], prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket of others refuses what does not say so: the header is part of all but the questions about the bucket itself."""
    monkeypatch.setenv("CELEBDIT_S3_REQUEST_PAYER", "requester")
    store = connect(seen[1].endpoint, deadline_s=10.0)
    (tmp_path / "big").write_bytes(bytes(8 * 2**20 + 1))
    store.put_file(prefix / "big", tmp_path / "big")
    probe(store, prefix)
    of_objects = [
        value for request, value in seen[0].of("x-amz-request-payer") if "?versioning" not in request and "?lifecycle" not in request
    ]
    assert len(of_objects) > 20
    assert set(of_objects) == {"requester"}


def test_nothing_is_added_where_nothing_is_configured(seen: tuple[Seen, Proxy], prefix: StoreUri) -> None:
    connect(seen[1].endpoint, deadline_s=10.0).put_bytes(prefix / "x", b"x")
    assert seen[0]
    assert not [
        name for _, _, headers in seen[0] for name in headers if name.startswith("x-amz-") and name[6:] not in ("date", "content-sha256")
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"CELEBDIT_S3_ENCRYPTION": "rot13"}, "CELEBDIT_S3_ENCRYPTION is 'rot13'"),
        ({"CELEBDIT_S3_ENCRYPTION": "AES256", "CELEBDIT_S3_KMS_KEY_ID": KEY}, "CELEBDIT_S3_KMS_KEY_ID is set, and CELEBDIT_S3_ENCRYPTION"),
        ({"CELEBDIT_S3_STORAGE_CLASS": "DEEP_ARCHIVE"}, "DEEP_ARCHIVE: what is written there cannot be read at once"),
        ({"CELEBDIT_S3_REQUEST_PAYER": "yes"}, "CELEBDIT_S3_REQUEST_PAYER is 'yes'"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_before_any_request(
    setting: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        request_parameters(setting)
    assert refused.value.hint
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=message):
        connect("http://127.0.0.1:9")


def test_mlflow_uploads_to_the_same_region_with_the_same_parameters(
    seen: tuple[Seen, Proxy], prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_DEFAULT_REGION", "MLFLOW_S3_UPLOAD_EXTRA_ARGS", "AWS_S3_ADDRESSING_STYLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"CELEBDIT_S3_KMS_KEY_ID": KEY, "CELEBDIT_S3_STORAGE_CLASS": "STANDARD_IA", "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    environment = mlflow_s3_environment()
    assert json.loads(environment["MLFLOW_S3_UPLOAD_EXTRA_ARGS"]) == request_parameters()
    for name, value in {**environment, "MLFLOW_S3_ENDPOINT_URL": seen[1].endpoint}.items():
        monkeypatch.setenv(name, value)
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    (tmp_path / "file").write_bytes(b"x")
    S3ArtifactRepository(f"s3://{prefix.bucket}/{prefix.key}").log_artifact(str(tmp_path / "file"))
    described = connect(seen[1].endpoint).client.head_object(Bucket=prefix.bucket, Key=(prefix / "file").key)
    assert (described["SSEKMSKeyId"], described["StorageClass"]) == (KEY, "STANDARD_IA")
    assert {"/eu-west-1/s3/" in headers["authorization"] for _, _, headers in seen[0]} == {True}
