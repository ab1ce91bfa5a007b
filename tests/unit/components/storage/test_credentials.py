"""Credentials that expire in the middle, from every kind of source: renewed where there are new ones, and else said at once."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Answer, Proxy, fault_proxy, refusal
from celebdit_testing.http_server import Handler, serving

from components.errors import StorageUnavailable
from components.storage import ObjectStore, StoreUri, answers, connect
from components.storage.faults import StorageRefused
from components.stores.checkpoints import CheckpointStore, Retention
from components.train.checkpointing.uploads import UploadingSink
from model.checkpoint import CheckpointState

SECRET = "canary-secret-0123456789"


class Authority:
    """A store's list of tokens that are valid, and the sources from which clients get one."""

    def __init__(self) -> None:
        self.valid = "token-1"
        self.refused = 0

    def rule(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        token = {name.lower(): value for name, value in headers.items()}.get("x-amz-security-token")
        if token == self.valid:
            return None
        self.refused += 1
        return refusal(400, "ExpiredToken", "The provided token has expired.")

    def expire(self, new: str = "token-2") -> None:
        self.valid = new


@pytest.fixture
def authority(moto_endpoint: str) -> Iterator[tuple[Authority, Proxy]]:
    with fault_proxy(moto_endpoint) as proxy:
        authority = Authority()
        proxy.rule = authority.rule
        yield authority, proxy


class Source:
    """Where the client's credentials come from; `hand_out` writes other ones."""

    def __init__(self, kind: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._kind, self._folder, self._patch = kind, folder, patch
        self.token = "token-1"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name, raising=False)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            patch.setenv(name, str(folder / name))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        self.hand_out("token-1")
        if kind == "process":
            script = folder / "credentials.py"
            script.write_text(f"print(open({str(folder / 'credentials.json')!r}).read())")
            (folder / "AWS_CONFIG_FILE").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")

    def hand_out(self, token: str) -> None:
        self.token = token
        keys = {"AccessKeyId": "key", "SecretAccessKey": SECRET}
        if self._kind == "environment":
            for name, value in zip(
                ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), ("key", SECRET, token), strict=True
            ):
                self._patch.setenv(name, value)
        elif self._kind == "file":
            text = f"[default]\naws_access_key_id = key\naws_secret_access_key = {SECRET}\naws_session_token = {token}\n"
            (self._folder / "AWS_SHARED_CREDENTIALS_FILE").write_text(text)
        elif self._kind == "process":  # states no expiration
            (self._folder / "credentials.json").write_text(json.dumps({"Version": 1, **keys, "SessionToken": token}))

    def serve(self) -> type[Handler]:
        """The service that a container asks: it says that they last for an hour, and is wrong."""
        source = self

        class Service(Handler):
            def do_GET(self) -> None:  # noqa: N802 - the base class names it so
                expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
                content = {"AccessKeyId": "key", "SecretAccessKey": SECRET, "Token": source.token, "Expiration": expiration}
                self.answer(200, content)

        return Service


@pytest.fixture(params=["file", "process", "container"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    source = Source(request.param, tmp_path, monkeypatch)
    with serving(source.serve()) as address:
        if request.param == "container":
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{address}/credentials")
        yield source


def test_credentials_that_expire_are_renewed_from_their_source(
    source: Source, authority: tuple[Authority, Proxy], prefix: StoreUri, tmp_path: Path
) -> None:
    store_side, proxy = authority
    store = connect(proxy.endpoint, deadline_s=30.0)
    store.put_bytes(prefix / "x", b"before")
    assert store_side.refused == 0
    for call in (
        lambda: store.put_bytes(prefix / "x", b"x"),
        lambda: store.get_bytes(prefix / "x"),
        lambda: store.get_file(prefix / "x", tmp_path / "x"),
        lambda: store.describe(prefix / "x"),
        lambda: store.exists(prefix / "x"),
        lambda: store.list(prefix),
        lambda: store.delete(prefix / "x"),
    ):
        refused = store_side.refused
        new = f"token-{refused + 2}"
        source.hand_out(new)
        store_side.expire(new)
        call()
        assert store_side.refused > refused, "nothing was refused"


@pytest.mark.parametrize("source", ["container"], indirect=True)
def test_an_upload_in_parts_and_a_queue_of_checkpoints_outlive_their_credentials(
    source: Source, authority: tuple[Authority, Proxy], prefix: StoreUri, tmp_path: Path
) -> None:
    """As while training: four threads send parts of a checkpoint when the token expires, the next checkpoint waits behind it."""
    store_side, proxy = authority
    store = connect(proxy.endpoint, deadline_s=30.0)
    store.upload_check(prefix / "warm")
    checkpoints, noted = CheckpointStore(store, prefix), list[str]()
    sink = UploadingSink(tmp_path / "queue", checkpoints, attempt="a1", retention=Retention(newest=2), facts={}, note=noted.append)
    parts = 0

    def expire_amid_parts(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        nonlocal parts
        parts += "partNumber=" in path
        if parts == 2 and store_side.valid == "token-1":
            source.hand_out("token-2")
            store_side.expire()
        return store_side.rule(method, path, headers)

    proxy.rule = expire_amid_parts
    for step in (10, 20):
        weights = torch.full((5 * 2**20,), float(step))  # 20 MiB: three parts
        sink.submit(lambda step=step, weights=weights: CheckpointState(step=step, tensors={"weights": {"w": weights}}, facts={}))  # type: ignore[misc]
    sink.drain()
    assert store_side.refused > 0
    assert noted == []
    assert [entry.step for entry in checkpoints.list_committed()] == [20, 10]
    newest = checkpoints.newest(tmp_path / "restored")
    assert newest is not None
    assert newest[0].step == 20


@pytest.mark.parametrize("kind", ["environment", "file"])
def test_without_new_credentials_the_expiry_is_said_within_seconds(
    kind: str, authority: tuple[Authority, Proxy], prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_side, proxy = authority
    Source(kind, tmp_path, monkeypatch)
    store = connect(proxy.endpoint, deadline_s=60.0)
    store.put_bytes(prefix / "x", b"x")
    store_side.expire()
    began_s = time.monotonic()
    with pytest.raises(StorageRefused, match="400 ExpiredToken") as refused:
        store.get_bytes(prefix / "x")
    assert time.monotonic() - began_s < 30
    assert refused.value.answer is answers.EXPIRED
    assert "get new credentials" in str(refused.value.hint)
    assert SECRET not in refused.value.message + str(refused.value.hint)


def test_a_source_that_fails_for_now_is_waited_for(
    authority: tuple[Authority, Proxy], prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_side, proxy = authority
    source = Source("process", tmp_path, monkeypatch)
    connected = connect(proxy.endpoint)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 6:  # longer than expired credentials are tried where the source has no others
            source.hand_out("token-2")

    store = ObjectStore(
        connected.client,
        credentials=connected.client._get_credentials(),  # type: ignore[attr-defined]
        addressing="path",
        other_style=lambda: connected,
        deadline_s=300.0,
        sleep=sleep,
    )
    store.put_bytes(prefix / "x", b"x")
    store_side.expire()
    (tmp_path / "credentials.json").unlink()  # the process ends with 1
    assert store.get_bytes(prefix / "x") == b"x"
    assert len(slept) >= 6


def test_a_pod_with_a_web_identity_and_no_keys_works(
    authority: tuple[Authority, Proxy], moto_endpoint: str, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STS gives temporary keys with a token; when the store says that they have expired, it is asked again."""
    store_side, proxy = authority
    Source("none", tmp_path, monkeypatch)
    (tmp_path / "token").write_text("web-identity")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/steps")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto_endpoint)
    tokens: list[str] = []

    def rule(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        tokens.append({name.lower(): value for name, value in headers.items()}["x-amz-security-token"])
        if len(tokens) > 3 and tokens[-1] == tokens[0]:
            store_side.refused += 1
            return refusal(400, "ExpiredToken")
        return None

    proxy.rule = rule
    store = connect(proxy.endpoint, deadline_s=30.0)
    for number in range(4):
        store.put_bytes(prefix / f"{number}", b"x")
    assert store_side.refused == 1
    assert len(set(tokens)) == 2


def test_a_role_that_cannot_be_assumed_is_refused_and_a_dead_service_is_waited_for(
    authority: tuple[Authority, Proxy], prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's web identity: its token file is sent to STS, which here refuses; then STS is not there."""
    Source("none", tmp_path, monkeypatch)
    (tmp_path / "token").write_text("web-identity")
    answer = refusal(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    body = b"<ErrorResponse>" + answer[2] + b"</ErrorResponse>"

    class Sts(Handler):
        def do_POST(self) -> None:  # noqa: N802
            self.content()
            self.answer(403, body, "text/xml")

    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/steps")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with serving(Sts) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", address)
        with pytest.raises(StorageRefused, match="403 AccessDenied: AssumeRoleWithWebIdentity failed") as refused:
            connect(authority[1].endpoint, deadline_s=60.0).put_bytes(prefix / "x", b"x")
        assert refused.value.answer is answers.ROLE
    with pytest.raises(StorageUnavailable):
        connect(authority[1].endpoint, deadline_s=0.5).put_bytes(prefix / "x", b"x")


def test_the_region_is_the_one_that_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "config").write_text("[default]\nregion = eu-central-1\n[profile team]\nregion = ap-south-2\n")
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    regions = []
    for setting in ({}, {"AWS_PROFILE": "team"}, {"AWS_DEFAULT_REGION": "us-west-2"}, {"AWS_REGION": "eu-north-1"}):
        for name, value in setting.items():
            monkeypatch.setenv(name, value)
        regions.append(connect("http://127.0.0.1:9").client.meta.region_name)
    assert regions == ["eu-central-1", "ap-south-2", "us-west-2", "eu-north-1"]
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("")
    assert connect("http://127.0.0.1:9").client.meta.region_name == "us-east-1"
