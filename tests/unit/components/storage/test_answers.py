"""Every row of the table of answers, in front of a real server: what waits, what ends at once, what is data, and what the error says."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
from celebdit_testing.faults import Answer, Fault, Proxy, refusal
from celebdit_testing.tls import tls_proxy

from components.errors import BadInput, CelebditError, DataRefused, StorageUnavailable
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri, connect, retried_calls
from components.storage import answers as table
from components.storage.answers import ANSWERS, answers_table
from components.storage.faults import StorageRefused
from components.storage.probe import probe

Rule = Callable[[str, str, Mapping[str, str]], Answer | None]
DAY_S = 86400.0
CALLS: dict[str, Callable[[ObjectStore, StoreUri, Path], object]] = {
    "put": lambda store, uri, folder: store.put_bytes(uri, b"x"),
    "get": lambda store, uri, folder: store.get_bytes(uri),
    "get a file": lambda store, uri, folder: store.get_file(uri, folder / "x"),
    "describe": lambda store, uri, folder: store.describe(uri),
    "look for": lambda store, uri, folder: store.exists(uri),
    "list": lambda store, uri, folder: store.list(StoreUri(uri.bucket, uri.key.rpartition("/")[0])),
    "delete": lambda store, uri, folder: store.delete(uri),
    "copy": lambda store, uri, folder: store.copy(uri, uri / "copy"),
}


@dataclass(frozen=True)
class Case:
    """An answer, the row that it belongs to, and what the error says."""

    row: table.Answer
    answer: Callable[[], Answer]
    message: str
    hint: str
    but: tuple[str, ...] = ()
    """Calls that it does not apply to."""

    def __str__(self) -> str:
        return f"{self.row.name}-{self.answer()[0]}"


def skewed(ahead_s: float) -> Answer:
    return refusal(403, "RequestTimeTooSkewed", Date=formatdate(time.time() + ahead_s, usegmt=True))


def denied(message: str) -> Answer:
    return refusal(403, "AccessDenied", message)


_MOST = ("get", "get a file", "look for", "list", "delete", "copy")  # a second each: new credentials may be late
AWS_DENIED = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/k"
MALFORMED = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'ap-south-2'"
REFUSED = [
    Case(table.REGION, lambda: refusal(301, "PermanentRedirect", region="eu-west-1"), "in region eu-west-1", "set AWS_REGION=eu-west-1"),
    Case(
        table.REGION,
        lambda: refusal(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-north-1"}),
        "in region eu-north-1",
        "set AWS_REGION=eu-north-1",
    ),
    Case(table.REGION, lambda: refusal(307, "TemporaryRedirect", region="us-west-2"), "in region us-west-2", "set AWS_REGION=us-west-2"),
    Case(
        table.REGION, lambda: refusal(400, "AuthorizationHeaderMalformed", MALFORMED), "in region ap-south-2", "set AWS_REGION=ap-south-2"
    ),
    Case(table.REGION, lambda: refusal(301, "PermanentRedirect"), "301 PermanentRedirect", "set AWS_REGION to the region"),
    Case(table.SKEWED, lambda: skewed(DAY_S), "1440 minutes behind", "set the clock"),
    Case(table.SKEWED, lambda: skewed(-DAY_S), "1440 minutes ahead", "set the clock"),
    Case(table.EXPIRED, lambda: refusal(400, "ExpiredToken"), "400 ExpiredToken", "get new credentials", but=_MOST),
    Case(table.KEYS, lambda: refusal(403, "InvalidAccessKeyId"), "403 InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
    Case(table.KEYS, lambda: refusal(403, "SignatureDoesNotMatch"), "403 SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    Case(table.KEYS, lambda: refusal(400, "InvalidToken"), "400 InvalidToken", "AWS_SESSION_TOKEN"),
    Case(table.NO_BUCKET, lambda: refusal(404, "NoSuchBucket"), "404 NoSuchBucket", "CELEBDIT_STORE", but=("describe", "look for")),
    Case(table.DENIED, lambda: denied(AWS_DENIED), "the right kms:GenerateDataKey is missing", "grant the right"),
    Case(table.DENIED, lambda: refusal(401, "Unauthorized"), "401 Unauthorized: the right s3:", "grant the right"),
    Case(table.KMS, lambda: refusal(400, "KMS.DisabledException"), "KMS.DisabledException", "CELEBDIT_S3_KMS_KEY_ID"),
    Case(table.STORAGE_CLASS, lambda: refusal(400, "InvalidStorageClass"), "InvalidStorageClass", "CELEBDIT_S3_STORAGE_CLASS"),
    Case(table.QUOTA, lambda: refusal(507, "XMinioStorageFull"), "507 XMinioStorageFull", "free space", but=("describe", "look for")),
    Case(table.QUOTA, lambda: refusal(403, "QuotaExceeded"), "403 QuotaExceeded", "free space"),
    Case(table.OTHER_SERVER, lambda: refusal(501, "NotImplemented"), "501", "check AWS_ENDPOINT_URL"),
    Case(table.OTHER_SERVER, lambda: (302, [("Location", "http://login.example")], b""), "302", "login page"),
    Case(table.REFUSED, lambda: refusal(400, "InvalidArgument"), "400 InvalidArgument", "the server's own"),
]
WAITED_FOR = [
    (table.SLOW, refusal(503, "SlowDown")),
    (table.SLOW, refusal(429, "TooManyRequests")),
    (table.SLOW, refusal(400, "ThrottlingException")),
    (table.UNAVAILABLE, refusal(500, "InternalError")),
    (table.UNAVAILABLE, (502, [], b"<html>bad gateway</html>")),
    (table.UNAVAILABLE, refusal(400, "RequestTimeout")),
    (table.UNAVAILABLE, refusal(409, "OperationAborted")),
    (table.UNREADABLE, (200, [("Content-Length", "many")], b"x")),
]


@pytest.fixture
def store(proxy: Proxy) -> ObjectStore:
    """A client that would wait for long, and has asked already how uploads are checked."""
    client = connect(proxy.endpoint, deadline_s=30.0)
    client.upload_check(StoreUri("bucket", "warm"))
    return client


def counting(asked: list[str], answer: Callable[[], Answer], applies: Callable[[str], object], *, times: int = 10**6) -> Rule:
    """Answer the first `times` requests whose path applies, and note each in `asked`."""

    def rule(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        if not applies(f"{method} {path}") or len(asked) >= times:
            return None
        asked.append(path)
        return answer()

    return rule


def is_of(prefix: StoreUri) -> Callable[[str], bool]:
    """Whether a request is about what lies below `prefix`, a listing included."""
    return lambda path: prefix.key in path.replace("%2F", "/")


@pytest.mark.parametrize("case", REFUSED, ids=map(str, REFUSED))
def test_what_waiting_does_not_fix_ends_at_once_whatever_is_asked(
    case: Case, proxy: Proxy, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    for name, call in CALLS.items():
        if name in case.but:
            continue
        asked: list[str] = []
        proxy.rule = counting(asked, case.answer, is_of(prefix))
        began_s = time.monotonic()
        with pytest.raises(StorageRefused) as refused:
            call(store, prefix / "x", tmp_path)
        assert asked, name
        assert time.monotonic() - began_s < 25, f"{name}: the deadline is 30 s"
        assert refused.value.answer is case.row, name
        if case.answer()[2] or name not in ("describe", "look for"):
            assert case.message in refused.value.message or name == "copy", (name, refused.value.message)
        assert case.hint in str(refused.value.hint), name


@pytest.mark.parametrize(("row", "answer"), WAITED_FOR, ids=[f"{row.name}-{answer[0]}" for row, answer in WAITED_FOR])
def test_what_waiting_fixes_is_waited_for(row: table.Answer, answer: Answer, proxy: Proxy, store: ObjectStore, prefix: StoreUri) -> None:
    store.put_bytes(prefix / "x", b"x")
    asked: list[str] = []
    proxy.rule = counting(asked, lambda: answer, is_of(prefix), times=2)
    assert store.get_bytes(prefix / "x") == b"x"
    assert len(asked) == 2
    proxy.rule = lambda method, path, headers: answer if is_of(prefix)(path) else None
    with pytest.raises(StorageUnavailable) as unavailable:
        connect(proxy.endpoint, deadline_s=0.5, read_timeout_s=5.0).get_bytes(prefix / "x")
    assert unavailable.value.hint == row.fix, unavailable.value.message


def test_a_late_request_is_repeated_if_the_clocks_agree(proxy: Proxy, store: ObjectStore, prefix: StoreUri) -> None:
    asked: list[str] = []
    proxy.rule = counting(asked, lambda: skewed(20.0), is_of(prefix), times=2)
    store.put_bytes(prefix / "x", b"x")
    assert len(asked) == 2


@pytest.mark.parametrize("call", ["get", "get a file", "describe", "copy"])
@pytest.mark.parametrize("answer", [refusal(404, "NoSuchKey"), refusal(410, "Gone"), denied("Access Denied")], ids=["404", "410", "403"])
def test_a_missing_key_is_missing(call: str, answer: Answer, proxy: Proxy, store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    proxy.replacement = lambda method, path, status: answer if status == 404 else None
    with pytest.raises(ObjectMissing):
        CALLS[call](store, prefix / "missing", tmp_path)
    assert not store.exists(prefix / "missing")


@pytest.mark.parametrize("allowed", ["keys", "folders", "nothing"])
def test_a_refused_key_is_missing_only_if_a_listing_says_so(
    allowed: str, proxy: Proxy, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    """A policy may allow to list everything, folders alone, or nothing; then the right that is missing is named."""
    store.put_bytes(prefix / "absent-not", b"x")

    def refuse_listing(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        folder = "absent" not in path
        return (
            denied("Access Denied") if "list-type=2" in path and (allowed == "nothing" or (allowed == "folders" and not folder)) else None
        )

    proxy.rule = refuse_listing
    proxy.replacement = lambda method, path, status: denied("Access Denied") if status == 404 else None
    if allowed == "nothing":
        with pytest.raises(StorageRefused, match=r"403 AccessDenied: the right s3:GetObject is missing"):
            store.get_bytes(prefix / "absent")
        with pytest.raises(StorageRefused, match=r"refuses s3://.*: AccessDenied: the right s3:ListBucket is missing"):
            probe(store, prefix)
        return
    with pytest.raises(ObjectMissing):
        store.get_bytes(prefix / "absent")
    assert not store.exists(prefix / "absent")
    capabilities = probe(store, prefix)
    assert capabilities.forbids_missing_keys
    assert "missing keys are answered with 403" in capabilities.describe()


def test_archived_and_corrupt_objects_are_data(proxy: Proxy, store: ObjectStore, prefix: StoreUri) -> None:
    proxy.rule = lambda method, path, headers: refusal(403, "InvalidObjectState") if is_of(prefix)(path) else None
    with pytest.raises(DataRefused, match="in an archive") as archived:
        store.get_bytes(prefix / "x")
    assert archived.value.hint == table.ARCHIVED.fix
    asked: list[str] = []
    proxy.rule = counting(asked, lambda: refusal(400, "BadDigest"), is_of(prefix))
    with pytest.raises(DigestMismatch, match="3 attempts"):
        store.put_bytes(prefix / "x", b"x")
    assert len(asked) == 3


def test_an_upload_that_was_aborted_by_others_is_begun_again(proxy: Proxy, store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(8 * 2**20 + 1))
    for aborted in ("PUT .*partNumber=2", "POST .*uploadId="):
        asked: list[str] = []
        proxy.rule = counting(asked, lambda: refusal(404, "NoSuchUpload"), re.compile(aborted).match, times=1)
        digest = store.put_file(prefix / "big", tmp_path / "big")
        assert len(asked) == 1
        store.check(prefix / "big", digest)


@pytest.mark.parametrize("trusted", ["nobody", "the wrong file", "the authority"])
def test_a_certificate_that_is_not_trusted_ends_at_once(
    trusted: str, moto_endpoint: str, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_proxy(moto_endpoint, tmp_path) as (endpoint, authority):
        bundle = {"nobody": "", "the wrong file": str(tmp_path / "none.pem"), "the authority": str(authority)}[trusted]
        if bundle:
            monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
        store = connect(endpoint, deadline_s=30.0)
        if trusted == "the authority":
            store.put_bytes(prefix / "x", b"x")
            return
        for call in (lambda: store.put_bytes(prefix / "x", b"x"), lambda: probe(store, prefix)):
            with pytest.raises(StorageRefused) as refused:
                call()
            assert refused.value.answer is table.CERTIFICATE
            assert "AWS_CA_BUNDLE" in str(refused.value.hint)


def test_a_server_without_tls_is_told_from_an_outage(moto_endpoint: str, prefix: StoreUri) -> None:
    with pytest.raises(StorageRefused) as refused:
        connect(moto_endpoint.replace("http:", "https:"), deadline_s=30.0).put_bytes(prefix / "x", b"x")
    assert refused.value.answer is table.CERTIFICATE


def test_no_credentials_are_bad_input(proxy: Proxy, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BadInput, match="no S3 credentials are configured"):
        connect(proxy.endpoint).put_bytes(prefix / "x", b"x")


def test_an_answer_that_is_cut_off_is_waited_for(proxy: Proxy, store: ObjectStore, prefix: StoreUri) -> None:
    store.put_bytes(prefix / "x", b"0123456789")
    with proxy.injecting(Fault("truncated", "GET"), Fault("reset", "GET")):
        assert store.get_bytes(prefix / "x") == b"0123456789"


def unhurried(proxy: Proxy, pauses: list[float]) -> ObjectStore:
    """A client that would wait for five minutes, and notes its pauses instead of making them."""
    connected = connect(proxy.endpoint)
    return ObjectStore(connected.client, addressing="path", other_style=lambda: connected, deadline_s=300.0, sleep=pauses.append)


CONFLICT = refusal(409, "ConditionalRequestConflict")
BIG = 8 * 2**20 + 1
WRITES = {"in one request": ("PUT ", 1, 7), "at its end": ("POST .*uploadId=", BIG, 2)}
"""What conflicts, the size of the file, and how often the write is attempted: fewer times where that takes long."""


@pytest.mark.parametrize("when", WRITES)
def test_a_write_that_conflicts_is_repeated_for_a_while_and_then_refused(
    when: str, proxy: Proxy, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, size_bytes, attempts = WRITES[when]
    assert retried_calls._CONFLICT_ATTEMPTS == 7
    monkeypatch.setattr(retried_calls, "_CONFLICT_ATTEMPTS", attempts)
    (tmp_path / "file").write_bytes(bytes(size_bytes))
    pauses: list[float] = []
    store, uri = unhurried(proxy, pauses), prefix / "x"
    store.upload_check(prefix / "warm")
    asked: list[str] = []
    applies = lambda path: uri.key in path and re.match(pattern, path)  # noqa: E731
    proxy.rule = counting(asked, lambda: CONFLICT, applies, times=attempts - 1)
    store.check(uri, store.put_file(uri, tmp_path / "file"))
    assert len(asked) == attempts - 1
    asked.clear()
    pauses.clear()
    proxy.rule = counting(asked, lambda: CONFLICT, applies)
    with pytest.raises(StorageRefused, match="409 ConditionalRequestConflict: another program writes the same object") as refused:
        store.put_file(uri, tmp_path / "file")
    assert (refused.value.answer, refused.value.exit_code) == (table.CONFLICT, 2)
    assert "see what else writes below CELEBDIT_STORE" in str(refused.value.hint)
    assert len(asked) == attempts
    assert sum(pauses) < 30
    if when == "at its end":
        assert len({path.rpartition("uploadId=")[2] for path in asked}) == attempts, "each time all of it"


@pytest.mark.parametrize("answer", [500, 409])
def test_a_store_that_fails_at_conditional_writes_alone_passes_the_probe(answer: int, proxy: Proxy, prefix: StoreUri) -> None:
    refused: list[str] = []

    def refuse_conditions(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        if "If-None-Match" not in headers:
            return None
        refused.append(path)
        return refusal(answer, "x")

    proxy.rule = refuse_conditions
    pauses: list[float] = []
    capabilities = probe(unhurried(proxy, pauses), prefix)
    assert refused
    assert capabilities.conditional_writes == (answer == 409)
    assert ("conditional writes are ignored or not supported (not needed)" in capabilities.describe()) == (answer != 409)
    assert not pauses


def test_a_store_that_fails_at_every_write_does_not_pass_as_one_without_conditions(proxy: Proxy, prefix: StoreUri) -> None:
    """The first write succeeds, so that the probe comes to the conditional one."""
    fails = False

    def fail_from_the_condition(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        nonlocal fails
        fails = fails or "If-None-Match" in headers
        return refusal(500, "InternalError") if fails and method == "PUT" else None

    proxy.rule = fail_from_the_condition
    with pytest.raises(StorageUnavailable, match="500 InternalError"):
        probe(connect(proxy.endpoint, deadline_s=1.0), prefix)
    assert fails


ELSEWHERE = {"conflict", "missing", "archived", "corrupt", "lost-upload", "certificate", "no-credentials", "credentials-source", "role"}
"""Rows with a test of their own, here or in test_credentials.py."""


def test_every_row_is_tested_and_printed() -> None:
    assert {case.row.name for case in REFUSED} | {row.name for row, _ in WAITED_FOR} | ELSEWHERE == {row.name for row in ANSWERS}
    assert len({row.name for row in ANSWERS}) == len(ANSWERS)
    codes = [code for row in ANSWERS for code in row.codes]
    statuses = [status for row in ANSWERS for status in row.statuses]
    assert (len(set(codes)), len(set(statuses))) == (len(codes), len(statuses)), "a code or a status is in two rows"
    printed = answers_table()
    assert all(f"`{code}`" in printed for code in codes)
    assert all(row.fix in printed for row in ANSWERS)
    assert issubclass(StorageRefused, CelebditError)
