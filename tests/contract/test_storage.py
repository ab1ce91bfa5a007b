"""The storage door on real servers: rclone on a directory, moto in memory."""

import hashlib
from pathlib import Path

import pytest

from components.errors import BadInput, DataRefused, StorageUnavailable
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri, connect, file_sha256


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
    found = store.probe(prefix)
    assert found.conditional_writes == ("moto" in request.node.name)
    assert found.addressing == "path"
    assert found.upload_check == ("read-back" if "moto" in request.node.name else "content-md5")
    assert store.list(prefix) == []


def test_a_bucket_that_is_there_is_no_error(store: ObjectStore) -> None:
    store.make_bucket("bucket")


def test_wrong_credentials_are_bad_input_and_not_shown(rclone_endpoint: str, prefix: StoreUri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    with pytest.raises(BadInput, match="object storage refuses") as raised:
        connect(rclone_endpoint, deadline_s=2.0).probe(prefix)
    assert "wrong-secret-value" not in raised.value.message + str(raised.value.hint)


def test_a_bucket_that_is_not_there_is_bad_input(rclone_endpoint: str) -> None:
    with pytest.raises(BadInput, match="refuses s3://no-such-bucket/x: NoSuchBucket"):
        connect(rclone_endpoint, deadline_s=2.0).probe(StoreUri("no-such-bucket", "x"))


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
