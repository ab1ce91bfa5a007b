"""A store that lets nothing be deleted, by its policy or by a retention: what is only tidied up stays, and nothing else changes."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Answer, Proxy, fault_proxy, refusal
from celebdit_testing.metric_store import MetricStore
from celebdit_testing.steps import keys_below

from components.storage import ObjectStore, StoreUri, connect
from components.storage.faults import StorageRefused
from components.storage.probe import probe
from components.stores.checkpoints import CheckpointStore, Retention
from components.tracking.archive import JournalArchive
from components.tracking.journal import Journal
from components.train.checkpointing.uploads import UploadingSink
from model.checkpoint import CheckpointState
from model.checkpoint_manifest import list_checkpoints

NEEDS_A_CHECKSUM = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"


def refuse_deletions(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
    return refusal(403, "AccessDenied", "Access Denied") if method == "DELETE" and "uploadId" not in path else None


def require_checksums(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
    """As S3 does in a bucket with Object Lock, for objects and for parts alike."""
    names = {name.lower() for name in headers}
    writes = method == "PUT" and "x-amz-copy-source" not in names
    return refusal(400, "InvalidRequest", NEEDS_A_CHECKSUM) if writes and "content-md5" not in names else None


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(moto_endpoint) as proxy:
        yield proxy


@pytest.fixture
def locked(proxy: Proxy) -> ObjectStore:
    proxy.rule = refuse_deletions
    return connect(proxy.endpoint, deadline_s=5.0)


def test_the_probe_passes_a_bucket_with_object_lock(proxy: Proxy, prefix: StoreUri, tmp_path: Path) -> None:
    proxy.rule = require_checksums
    store = connect(proxy.endpoint, deadline_s=5.0)
    assert probe(store, prefix).conditional_writes
    large = tmp_path / "large"
    large.write_bytes(b"x" * 9 * 2**20)
    store.put_file(prefix / "large", large)
    store.copy(prefix / "large", prefix / "copy")


def test_the_probe_names_the_right_to_delete(locked: ObjectStore, prefix: StoreUri) -> None:
    with pytest.raises(StorageRefused, match="the right s3:DeleteObject is missing"):
        probe(locked, prefix)


def test_a_writer_needs_no_right_to_delete(locked: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    """Where the store does not check uploads, as moto, which the client finds out with an object that it wants to delete."""
    assert locked.upload_check(prefix) == "read-back"
    locked.put_bytes(prefix / "x", b"x")
    assert locked.get_bytes(prefix / "x") == b"x"


def test_checkpoints_that_may_not_be_deleted_fill_no_local_disk_and_are_noted_once(
    locked: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    checkpoints, noted = CheckpointStore(locked, prefix), list[str]()
    sink = UploadingSink(tmp_path / "queue", checkpoints, attempt="a1", retention=Retention(newest=2), facts={}, note=noted.append)
    for step in range(1, 7):
        sink.submit(lambda step=step: CheckpointState(step=step, tensors={"weights": {"w": torch.ones(3)}}, facts={}))  # type: ignore[misc]
        sink.drain()
    assert [entry.step for entry in checkpoints.list_committed()] == [6, 5, 4, 3, 2, 1]
    assert [folder.name for folder in list_checkpoints(tmp_path / "queue")] == ["step-000000006"]
    assert len(noted) == 1
    assert re.search(r"after the checkpoint of step 3: .* the right s3:DeleteObject is missing; grant the right", noted[0])


def test_a_journal_that_may_not_be_deleted_is_delivered_all_the_same(
    locked: ObjectStore, prefix: StoreUri, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    archive = JournalArchive(locked, prefix, "a1")
    journal.add_metrics(1, {"train/loss": 0.5})
    archive.save(journal)
    journal.deliver(server)
    archive.discard()
    assert "entries that MLflow has received stay in object storage" in caplog.text
    assert "s3:DeleteObject" in caplog.text
    for _ in range(2):
        assert JournalArchive(locked, prefix, "a2").replay(server) == 1
    assert len(server.points) == 1
    assert len(keys_below(locked, prefix)) == 2, "the entries, and the object by which the client has found out how uploads are checked"
