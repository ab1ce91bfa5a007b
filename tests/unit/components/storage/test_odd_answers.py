"""Object storage behind something that does not answer as an S3 server does: a proxy, a captive portal, a broken or lazy server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celebdit_testing.http_server import FixedAnswer, answering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.errors import BadInput, CelebditError
from components.storage import ObjectStore, StoreUri, connect

URI = StoreUri("bucket", "folder/object")
CALLS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "get_bytes": lambda store, folder: store.get_bytes(URI),
    "get_head": lambda store, folder: store.get_head(URI, limit=3),
    "get_file": lambda store, folder: store.get_file(URI, folder / "file"),
    "get_file continued": lambda store, folder: store.get_file(URI, folder / "file", continued=True),
    "put_bytes": lambda store, folder: store.put_bytes(URI, b"bytes"),
    "exists": lambda store, folder: store.exists(URI),
    "list": lambda store, folder: store.list(StoreUri("bucket", "folder")),
    "version": lambda store, folder: store.version(URI),
    "delete": lambda store, folder: store.delete(URI),
}
XML = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


def ok(body: str, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", body]).encode()


ANSWERS = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a page": ok("<html><body>Please log in</body>", "Content-Type: text/html", "Content-Length: 32"),
    "no length": ok("the bytes"),
    "chunks": ok("9\r\nthe bytes\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "broken chunks": ok("9\r\nthe b", "Transfer-Encoding: chunked"),
    "a length that is none": ok("the bytes", "Content-Length: many"),
    "a negative length": ok("the bytes", "Content-Length: -5"),
    "a date that is none": ok("the bytes", "Content-Length: 9", "Last-Modified: yesterday"),
    "a listing cut off": ok(f"{XML}<Contents><Key>a</Key><Si", "Content-Length: 200"),
    "a listing that is no XML": ok(f"{XML}<Contents><Key>a</Key><Si", f"Content-Length: {len(XML) + 28}"),
    "a listing of strange sizes": ok(f"{XML}<Contents><Key>folder/a</Key><Size>x</Size></Contents></ListBucketResult>"),
    "a listing without sizes": ok(f"{XML}<Contents><Key>folder/a</Key></Contents></ListBucketResult>"),
    "a listing without keys": ok(f"{XML}<Contents><Size>1</Size></Contents></ListBucketResult>"),
    "a listing with strange times": ok(
        f"{XML}<Contents><Key>folder/a</Key><Size>1</Size><LastModified>x</LastModified></Contents></ListBucketResult>"
    ),
    "a listing that never ends": ok(f"{XML}<IsTruncated>true</IsTruncated></ListBucketResult>"),
    "a redirection to nowhere": b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n",
    "an error of no kind": b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\n\r\nhello",
    "an error that is no XML": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n<Erro",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
}


@pytest.fixture(scope="module")
def odd_server(s3_credentials: None) -> Iterator[FixedAnswer]:
    with answering() as server:
        yield server


@pytest.fixture(scope="module")
def odd_store(odd_server: FixedAnswer) -> ObjectStore:
    """The store at the odd server, which does not wait between two attempts."""
    connected = connect(odd_server.address)
    return ObjectStore(connected.client, addressing="path", other_style=lambda: connected, deadline_s=0.01, sleep=lambda seconds: None)


def call_and_describe(call: str, store: ObjectStore, folder: Path) -> CelebditError | None:
    """What the call fails with; nothing but errors for people may leave it."""
    store.client.close()  # else it would use the connection that the last answer has ended
    try:
        CALLS[call](store, folder)
    except CelebditError as error:
        return error
    return None


def is_described(error: CelebditError | None) -> bool:
    return error is None or (error.exit_code in (2, 3, 75) and "\n" not in error.message)


@pytest.mark.parametrize("answer", ANSWERS)
def test_any_answer_is_either_understood_or_described(answer: str, odd_server: FixedAnswer, odd_store: ObjectStore, tmp_path: Path) -> None:
    for call in CALLS:
        odd_server.answer_with(ANSWERS[answer])
        assert is_described(call_and_describe(call, odd_store, tmp_path)), call
        assert odd_server.requests, call


@pytest.mark.parametrize("answer", ["no length", "chunks"])
def test_an_answer_without_a_length_is_read_to_its_end(
    answer: str, odd_server: FixedAnswer, odd_store: ObjectStore, tmp_path: Path
) -> None:
    odd_server.answer_with(ANSWERS[answer])
    calls = (
        lambda: odd_store.get_bytes(URI),
        lambda: odd_store.get_head(URI, limit=3),
        lambda: odd_store.get_file(URI, tmp_path / "file"),
    )
    results = []
    for call in calls:
        odd_store.client.close()  # each answer ends its connection without announcing it
        results.append(call())
    assert results[:2] == [b"the bytes", b"the"]
    assert (tmp_path / "file").read_bytes() == b"the bytes"
    odd_store.client.close()
    with pytest.raises(CelebditError, match="more than 8 bytes"):
        odd_store.get_bytes(URI, max_bytes=8)


HTTP = st.builds(
    lambda status, head, body: b"HTTP/1.1 %d x\r\n%s\r\n\r\n%s" % (status, head, body),
    st.integers(200, 599),
    st.binary(max_size=60),
    st.binary(max_size=60),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=200) | HTTP, call=st.sampled_from(sorted(CALLS)))
def test_any_bytes_are_either_understood_or_described(
    raw: bytes, call: str, odd_server: FixedAnswer, odd_store: ObjectStore, tmp_path: Path
) -> None:
    odd_server.answer_with(raw)
    assert is_described(call_and_describe(call, odd_store, tmp_path))
    assert odd_server.requests


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://host:port", "host:9000", "ftp://host", "http://", "/some/path", "http://user:p/w@host"]
)
def test_an_address_that_is_none_is_described_without_a_password_in_it(address: str) -> None:
    with pytest.raises(BadInput, match="AWS_ENDPOINT_URL is not a URL") as raised:
        connect(address)
    assert "p/w" not in f"{raised.value.message} {raised.value.hint}"


def test_a_profile_that_does_not_exist_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(BadInput, match="no-such-profile"):
        connect("http://127.0.0.1:9")


def test_a_key_longer_than_any_file_name_is_refused_before_it_is_requested() -> None:
    with pytest.raises(BadInput, match=r"kkk\.\.\. \(302 characters\) cannot be part of an object key"):
        StoreUri.parse(f"s3://bucket/{'k' * 300}")
