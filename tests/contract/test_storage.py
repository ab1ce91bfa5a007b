"""The storage client on real servers: rclone on a directory, moto in memory."""

import hashlib
import io
import os
import tracemalloc
from pathlib import Path

import pytest

from components.errors import BadInput, DataRefused, StorageUnavailable
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri, connect, file_sha256
from components.storage.part import FilePart
from components.storage.probe import probe


def test_bytes_come_back_as_they_went_in(store: ObjectStore, prefix: StoreUri) -> None:
    for data in (b"", b"x", bytes(range(256)) * 5000):
        digest = store.put_bytes(prefix / "object", data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert store.get_bytes(prefix / "object", sha256=digest) == data


def test_files_in_several_parts_come_back_as_they_went_in(store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(bytes(range(251)) * 150_000)
    digest = store.put_file(prefix / "big", source)
    assert digest == file_sha256(source)
    assert store.get_file(prefix / "big", target, sha256=digest) == digest
    assert target.read_bytes() == source.read_bytes()


def test_a_multipart_upload_never_holds_the_complete_file_in_memory(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> None:
    """Four parts of 8 MiB each are under way at once; what is held of them is what is being sent."""
    store = connect(rclone_endpoint)
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**18)
    store.upload_check(prefix / "large")
    tracemalloc.start()
    store.put_file(prefix / "large", tmp_path / "large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_part_of_a_file_reads_like_a_file_and_notices_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    with (tmp_path / "file").open("rb") as file:
        part = FilePart(file, 10, 100)
        assert (len(part), part.read(30), part.tell(), part.read(), part.read()) == (
            100,
            bytes(range(10, 40)),
            30,
            bytes(range(40, 110)),
            b"",
        )
        assert (part.seek(-5, io.SEEK_END), part.read(), b"".join(part.chunks())) == (95, bytes(range(105, 110)), bytes(range(10, 110)))
        os.truncate(tmp_path / "file", 50)
        part.seek(0)
        with pytest.raises(OSError, match="became shorter"):
            part.read()


def test_listing_is_complete_sorted_and_below_the_prefix_only(store: ObjectStore, prefix: StoreUri) -> None:
    names = [f"{index:04d}" for index in range(30)]
    for name in reversed(names):
        store.put_bytes(prefix / "inside" / name, name.encode())
    store.put_bytes(prefix / "inside-not", b"neighbour")
    listed = store.list(prefix / "inside")
    assert [item.uri.name for item in listed] == names
    assert {item.size_bytes for item in listed} == {4}


def test_deleting_is_final_and_may_be_repeated(store: ObjectStore, prefix: StoreUri) -> None:
    store.put_bytes(prefix / "object", b"x")
    assert store.exists(prefix / "object")
    for _ in range(2):
        store.delete(prefix / "object")
    assert not store.exists(prefix / "object")
    with pytest.raises(ObjectMissing, match="does not exist"):
        store.get_bytes(prefix / "object")


def test_other_bytes_than_expected_are_refused_and_leave_no_file(store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    store.put_bytes(prefix / "object", b"tampered")
    expected = hashlib.sha256(b"original").hexdigest()
    with pytest.raises(DigestMismatch, match=expected):
        store.get_bytes(prefix / "object", sha256=expected)
    with pytest.raises(DigestMismatch):
        store.get_file(prefix / "object", tmp_path / "target", sha256=expected)
    assert list(tmp_path.iterdir()) == []


def test_an_object_larger_than_expected_is_not_read(store: ObjectStore, prefix: StoreUri) -> None:
    store.put_bytes(prefix / "object", b"x" * 1000)
    with pytest.raises(DataRefused, match="1000 bytes, at most 999"):
        store.get_bytes(prefix / "object", max_bytes=999)


def test_the_probe_finds_out_about_conditional_writes_and_leaves_nothing(
    store: ObjectStore, prefix: StoreUri, request: pytest.FixtureRequest
) -> None:
    capabilities = probe(store, prefix)
    assert capabilities.conditional_writes == ("moto" in request.node.name)
    assert capabilities.addressing == ("virtual" if "virtual" in request.node.name else "path")
    assert capabilities.upload_check == ("read-back" if "moto" in request.node.name else "content-md5")
    assert store.list(prefix) == []


def test_wrong_credentials_are_bad_input_and_not_shown(rclone_endpoint: str, prefix: StoreUri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    with pytest.raises(BadInput, match="object storage refuses") as raised:
        probe(connect(rclone_endpoint, deadline_s=2.0), prefix)
    assert "wrong-secret-value" not in raised.value.message + str(raised.value.hint)


def test_a_bucket_that_is_not_there_is_bad_input(rclone_endpoint: str) -> None:
    with pytest.raises(BadInput, match="refuses s3://no-such-bucket/x: NoSuchBucket"):
        probe(connect(rclone_endpoint, deadline_s=2.0), StoreUri("no-such-bucket", "x"))


def test_a_server_that_is_not_there_is_a_temporary_failure(s3_credentials: None, prefix: StoreUri) -> None:
    with pytest.raises(StorageUnavailable, match=r"put s3://.* failed \d+ times in") as raised:
        connect("http://127.0.0.1:9", deadline_s=1.0).put_bytes(prefix / "x", b"x")
    assert raised.value.exit_code == 75


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://b",
        "s3://B/x",
        "http://bucket/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a/./b",
        "s3://bucket/ä",
        "s3://bucket/a b",
    ],
)
def test_locations_that_are_none_or_could_escape_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        StoreUri.parse(text)


@pytest.mark.parametrize("segment", ["..", ".", "", "a/b", "../x", "-x", "a\nb", "a\0b", "%2e%2e", "a\\b"])
def test_a_segment_that_could_leave_its_prefix_is_refused(segment: str) -> None:
    with pytest.raises(BadInput):
        StoreUri("bucket", "prefix") / segment


def test_locations_are_joined_and_taken_apart() -> None:
    uri = StoreUri.parse("s3://bucket/a/b").join("c/d.json")
    assert str(uri) == "s3://bucket/a/b/c/d.json"
    assert uri.name == "d.json"
    assert uri.relative_to(StoreUri("bucket", "a")) == "b/c/d.json"
    assert StoreUri.parse(str(uri)) == uri


def test_with_virtual_addresses_the_bucket_is_a_part_of_the_hosts_name(
    moto_endpoint: str, moto_virtual_endpoint: str, prefix: StoreUri, caplog: pytest.LogCaptureFixture
) -> None:
    store = connect(moto_virtual_endpoint)
    assert store.addressing == "virtual"
    with caplog.at_level("DEBUG", logger="botocore"):
        store.put_bytes(prefix / "object", b"one")
    assert f"http://bucket.s3.test:{moto_endpoint.rsplit(':', 1)[1]}/{(prefix / 'object').key}" in caplog.text
    assert probe(store, prefix).addressing == "virtual"


def test_folders_are_the_first_segments_of_keys(store: ObjectStore, prefix: StoreUri) -> None:
    assert store.folders(prefix) == []
    for key in ("b/c/one", "b/c/two", "b/three", "a/four", "file"):
        store.put_bytes(prefix / key.split("/")[0] if "/" not in key else StoreUri(prefix.bucket, f"{prefix.key}/{key}"), b"x")
    assert store.folders(prefix) == ["a", "b"]
    assert store.folders(prefix / "b") == ["c"]
    assert store.folders(prefix / "nothing") == []
    assert prefix.key.split("/")[0] in store.folders(StoreUri(prefix.bucket, ""))
