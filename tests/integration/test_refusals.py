"""What object storage does not allow is bad input, and what is not there is missing, even where the store answers 403 for it."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.faults import Fault, Proxy, fault_proxy
from PIL import Image

from components.storage import ObjectMissing, ObjectStore, StoreUri, connect
from components.storage.faults import StorageRefused
from pipeline.services import Endpoints


@pytest.fixture
def proxy(rclone_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(rclone_endpoint) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "read"),
    [
        pytest.param("GET", lambda store, uri, folder: store.get_bytes(uri), id="get_bytes"),
        pytest.param("GET", lambda store, uri, folder: store.get_head(uri, limit=1), id="get_head"),
        pytest.param("GET", lambda store, uri, folder: store.get_file(uri, folder / "x"), id="get_file"),
        pytest.param("HEAD", lambda store, uri, folder: store.version(uri), id="version"),
    ],
)
def test_a_missing_key_that_is_answered_with_403_is_missing(
    proxy: Proxy, prefix: StoreUri, tmp_path: Path, method: str, read: Callable[[ObjectStore, StoreUri, Path], object]
) -> None:
    store = connect(proxy.endpoint, deadline_s=3.0)
    store.put_bytes(prefix / "missing-not", b"another key that begins the same way")
    with proxy.injecting(fault := Fault("403", method, path="/missing")), pytest.raises(ObjectMissing):  # type: ignore[arg-type]
        read(store, prefix / "missing", tmp_path)
    assert fault.fired == 1
    store.put_bytes(prefix / "missing", b"there now")
    with proxy.injecting(Fault("403", method, path="/missing")), pytest.raises(StorageRefused, match=" 403 "):  # type: ignore[arg-type]
        read(store, prefix / "missing", tmp_path)


def test_whether_a_key_exists_is_known_from_a_listing_where_head_is_refused(proxy: Proxy, prefix: StoreUri) -> None:
    store = connect(proxy.endpoint, deadline_s=3.0)
    with proxy.injecting(Fault("403", "HEAD", path="/x")):
        assert not store.exists(prefix / "x")
    store.put_bytes(prefix / "x", b"x")
    with proxy.injecting(Fault("403", "HEAD", path="/x")), pytest.raises(StorageRefused, match="refuses to look for"):
        store.exists(prefix / "x")


# An answer to HEAD has no body, so with "version" and "look" a missing bucket looks like a missing object.
@pytest.mark.parametrize(
    ("wrong", "call"),
    [
        *(("key", call) for call in ("put", "get", "list", "version", "delete", "look")),
        *(("bucket", call) for call in ("put", "get", "list")),
    ],
)
def test_a_wrong_key_or_bucket_is_bad_input_whatever_is_asked(
    rclone_endpoint: str, prefix: StoreUri, wrong: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    store = connect(rclone_endpoint, deadline_s=3.0)
    uri = (prefix if wrong == "key" else StoreUri("no-such-bucket", "x")) / "y"
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put_bytes(uri, b"x"),
        "get": lambda: store.get_bytes(uri),
        "list": lambda: store.list(uri),
        "version": lambda: store.version(uri),
        "delete": lambda: store.delete(uri),
        "look": lambda: store.exists(uri),
    }
    with pytest.raises(StorageRefused) as refused:
        calls[call]()
    assert refused.value.exit_code == 2
    assert "wrong-secret-value" not in refused.value.message + str(refused.value.hint)


@pytest.mark.parametrize("wrong", ["key", "bucket"])
def test_an_ingest_into_a_store_that_refuses_ends_with_2(
    endpoints: Endpoints, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(data.getvalue())
    for name, value in {
        "CELEBDIT_STORE": "s3://celebdit/refused" if wrong == "key" else "s3://no-such-bucket/refused",
        "AWS_SECRET_ACCESS_KEY": "wrong-secret-value" if wrong == "key" else endpoints.environment["AWS_SECRET_ACCESS_KEY"],
    }.items():
        monkeypatch.setenv(name, value)
    done = celebdit_here("ingest", "--source", str(tmp_path / "images"), "--image-px", "8", home=tmp_path / "home", capture=capsys)
    assert done.code == 2, done.err
    assert "object storage refuses" in done.err
    assert "wrong-secret-value" not in done.err
