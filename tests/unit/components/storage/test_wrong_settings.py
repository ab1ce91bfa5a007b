"""Settings of object storage that cannot work: each is named with the next action, at once where waiting does not help."""

from collections.abc import Callable
from pathlib import Path

import pytest
from celebdit_testing.faults import Answer, Proxy, refusal
from celebdit_testing.http_server import answering

from components.errors import BadInput, StorageUnavailable
from components.preflight.preflight import check_credentials
from components.settings import Settings
from components.storage import ObjectStore, StoreUri, connect
from components.storage.probe import probe
from pipeline.doctor.checks import run_check
from pipeline.doctor.servers import check_store

URI = StoreUri("bucket", "folder/object")
PROFILES = """
[profile no-program]
credential_process=/no/such/program
[profile no-json]
credential_process=echo hello
[profile no-section]
s3 = path
aws_access_key_id=a
aws_secret_access_key=b
[profile odd-region]
region=EU West
aws_access_key_id=a
aws_secret_access_key=b
"""


@pytest.fixture
def store(proxy: Proxy) -> ObjectStore:
    return connect(proxy.endpoint, deadline_s=30.0)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No source of credentials but the profiles above."""
    (tmp_path / "config").write_text(PROFILES)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("ending", ["?versionId=1", "#top"])
def test_an_endpoint_with_a_query_is_refused_before_any_request(ending: str, proxy: Proxy) -> None:
    with pytest.raises(BadInput, match="AWS_ENDPOINT_URL is not a URL of a server"):
        connect(proxy.endpoint + ending)
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ACCESS_KEY_ID", "SECRETLIKE\nkey", "a line break or another control character is in a credential, the region"),
        ("AWS_SESSION_TOKEN", "SECRETLIKE\ntoken", "a line break or another control character is in a credential"),
        ("AWS_REGION", "eu-west-1\n", "a line break or another control character"),
        ("CELEBDIT_S3_KMS_KEY_ID", "key\n2", "the key of KMS"),
        ("http_proxy", "SECRETLIKE:password", "the address of a proxy cannot be read"),
    ],
)
def test_what_no_request_can_be_made_of_ends_at_once_without_its_value(
    name: str, value: str, reason: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(other, "")
    monkeypatch.setenv(name, value)
    slept: list[float] = []
    client = connect(moto_endpoint).client
    store = ObjectStore(client, addressing="path", other_style=lambda: store, deadline_s=300.0, sleep=slept.append)
    with pytest.raises(BadInput, match=reason) as refused:
        store.put_bytes(URI, b"x")
    assert slept == []
    assert "SECRETLIKE" not in f"{refused.value.message} {refused.value.hint}"
    assert "Signature" not in refused.value.message


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_PROFILE", "no-program", "No such file or directory: '/no/such/program'"),
        ("AWS_PROFILE", "no-json", "JSONDecodeError"),
        ("AWS_PROFILE", "no-section", "no S3 client can be made: AttributeError"),
        ("AWS_PROFILE", "odd-region", "region_name 'EU West'"),
        ("AWS_REGION", "EU West", "region_name 'EU West'"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/x", "Unsupported host 'example.com'"),
    ],
)
def test_a_source_of_credentials_that_cannot_be_used_is_named(
    name: str, value: str, reason: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="no S3 client can be made") as refused:
        connect(proxy.endpoint)
    assert reason in refused.value.message
    assert refused.value.hint == "check the AWS_ variables and ~/.aws/config"


@pytest.mark.usefixtures("profiles")
def test_a_token_file_that_does_not_exist_is_no_outage(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token")
    with pytest.raises(BadInput, match=r"cannot be requested: .*No such file or directory: '/no/such/token'"):
        connect(proxy.endpoint).get_bytes(URI)
    assert proxy.requests == []


@pytest.mark.usefixtures("profiles")
def test_preflight_names_a_default_profile_whose_program_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(PROFILES.replace("profile no-program", "default"))
    with pytest.raises(BadInput, match="/no/such/program"):
        check_credentials(None)


@pytest.mark.parametrize(
    ("proxy_variable", "address", "message", "hint"),
    [
        (None, "http://127.0.0.1:9", "EndpointConnectionError: 127.0.0.1:9", "check AWS_ENDPOINT_URL, or run it again"),
        (None, "http://no-such-host.invalid:9000", "EndpointConnectionError: no-such-host.invalid:9000", "check AWS_ENDPOINT_URL"),
        ("http_proxy", "http://s3.test:9", "ProxyConnectionError: proxy 127.0.0.1:9", "check HTTP_PROXY"),
    ],
)
def test_what_cannot_be_reached_is_named(
    proxy_variable: str | None, address: str, message: str, hint: str, s3_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy_variable is not None:
        monkeypatch.setenv(proxy_variable, "http://user:password@127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "")
    with pytest.raises(StorageUnavailable) as unavailable:
        connect(address, deadline_s=0.05).get_bytes(URI)
    assert message in unavailable.value.message
    assert hint in str(unavailable.value.hint)
    assert "password" not in unavailable.value.message


PAGE = b"<html><body>Please log in</body></html>"
ALIEN: dict[str, tuple[Answer, str, str]] = {
    "a page": ((200, [("Content-Type", "text/html")], PAGE), "does not return what was written", "a login page may answer"),
    "nothing": ((200, [], b""), "does not return what was written", "a login page may answer"),
    "not found": ((404, [("Content-Type", "text/html")], b"<html>nginx</html>"), r"404 \(PutObject\)$", "check AWS_ENDPOINT_URL"),
    "no code": ((403, [], b"<Error><Code></Code></Error>"), "403: the right s3:PutObject is missing", "grant the right"),
    "two lines": (refusal(400, "Weird\nCode"), r"Weird Code \(PutObject\)$", "the server's own"),
    "a long code": (refusal(400, "x" * 5000), r"\(5000 characters\) \(PutObject\)$", "the server's own"),
}


@pytest.mark.parametrize("kind", ALIEN)
def test_a_server_that_is_not_object_storage_is_told_from_data_that_are_corrupt(kind: str, proxy: Proxy, store: ObjectStore) -> None:
    answer, message, hint = ALIEN[kind]
    proxy.rule = lambda method, path, headers: answer
    with pytest.raises(BadInput, match=message) as refused:
        probe(store, StoreUri("bucket", "alien"))
    assert proxy.requests
    assert hint in str(refused.value.hint)
    assert "\n" not in refused.value.message


def test_an_endpoint_whose_path_is_the_bucket_is_named(moto_endpoint: str) -> None:
    with pytest.raises(BadInput, match="object storage refuses s3://bucket/p: NoSuchKey") as refused:
        probe(connect(f"{moto_endpoint}/bucket"), StoreUri("bucket", "p"))
    assert "its path may be missing or one too many" in str(refused.value.hint)


@pytest.mark.parametrize(("lacking", "call"), [("POST", "CreateMultipartUpload"), ("list-type=2", "ListObjectsV2")])
def test_the_call_that_a_store_lacks_is_named(lacking: str, call: str, proxy: Proxy, store: ObjectStore) -> None:
    proxy.rule = lambda method, path, headers: refusal(501, "NotImplemented") if lacking in f"{method} {path}" else None
    with pytest.raises(BadInput, match=rf"NotImplemented \({call}\)$"):
        probe(store, StoreUri("bucket", "lacking"))


def test_a_store_that_answers_404_to_the_deletion_of_a_missing_object_is_no_error(proxy: Proxy, store: ObjectStore) -> None:
    """As Google Cloud Storage does, so also where the first answer was lost."""
    proxy.rule = lambda method, path, headers: refusal(404, "NoSuchKey") if method == "DELETE" else None
    store.delete(URI)
    assert proxy.requests == ["DELETE /bucket/folder/object"]
    proxy.rule = lambda method, path, headers: refusal(404, "NoSuchBucket") if method == "DELETE" else None
    with pytest.raises(BadInput, match="NoSuchBucket"):
        store.delete(URI)


def test_the_doctor_does_not_wait_for_a_silent_server_as_long_as_a_step(s3_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.doctor.servers._TIMEOUT_S", 0.2)
    with answering() as silent:
        silent.answer_with(b"", delay_s=600.0)
        (check,) = run_check("storage", lambda: check_store(silent.address, "s3://bucket/p", whose="these credentials"))
        assert silent.requests
    assert (check.state, "ReadTimeoutError" in check.found) == ("fail", True), check


ENVIRONMENT = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_RUN_ID": "r1"}


@pytest.mark.parametrize("prefix", [".p", "_p", "-p", "p/./q", "p/.hidden", "p//q", "a" * 256, "a/" * 300 + "a"])
def test_a_location_that_no_object_can_be_below_is_refused_by_the_name_of_its_variable(prefix: str) -> None:
    with pytest.raises(BadInput, match="CELEBDIT_STORE is not an S3 location"):
        Settings.from_environment({**ENVIRONMENT, "CELEBDIT_STORE": f"s3://bucket/{prefix}"})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(" http://a:1\n", "", "http://a:1"), (" ", "http://b:1 ", "http://b:1"), ("", "  ", None), ("http://a:1", "http://b:1", "http://a:1")],
)
def test_blanks_around_an_endpoint_do_not_matter_and_blanks_alone_are_none(first: str, second: str, expected: str | None) -> None:
    environ = {**ENVIRONMENT, "CELEBDIT_STORE": "s3://bucket/p", "AWS_ENDPOINT_URL_S3": first, "AWS_ENDPOINT_URL": second}
    assert Settings.from_environment(environ).s3_endpoint == expected


CALLS: list[Callable[[ObjectStore], object]] = [
    lambda store: store.list(StoreUri("bucket", "folder")),
    lambda store: store.put_bytes(URI, b"x"),
    lambda store: store.delete(URI),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_404_that_is_no_missing_object_is_about_the_address(
    call: Callable[[ObjectStore], object], proxy: Proxy, store: ObjectStore
) -> None:
    proxy.rule = lambda method, path, headers: (404, [], b"<html>nginx</html>")
    with pytest.raises(BadInput) as refused:
        call(store)
    assert "check AWS_ENDPOINT_URL" in str(refused.value.hint)
