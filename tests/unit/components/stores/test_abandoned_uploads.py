"""Parts of uploads that were killed: the next attempt and retention abort them, and never those of a living attempt."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Answer, Fault, fault_proxy, refusal
from celebdit_testing.waiting import wait_until

from components.storage import ObjectStore, StoreUri, connect
from components.storage.bucket import bucket_rules
from components.storage.probe import probe
from components.storage.unfinished_uploads import UnfinishedUpload, begin_upload, unfinished_uploads
from components.stores.abandoned_uploads import abort_old_uploads
from components.stores.checkpoint_names import rescued_name
from components.stores.checkpoints import CheckpointStore, Retention
from model.checkpoint import CheckpointState, publish

BYTES = bytes(2**10)


def begin(store: ObjectStore, prefix: StoreUri, attempt: str, step: int = 10) -> UnfinishedUpload:
    upload = begin_upload(store, prefix / f"step-{step:09d}" / attempt / "weights.safetensors")
    upload.put_part(store.client, 1, BYTES)
    return upload


def ids(store: ObjectStore, prefix: StoreUri) -> set[str]:
    listed = unfinished_uploads(store, prefix)
    assert listed is not None
    return {upload.id for upload in listed}


def test_retention_aborts_what_earlier_attempts_left_and_nothing_else(store: ObjectStore, prefix: StoreUri) -> None:
    home = prefix / "checkpoints"
    earlier = ("20260101T000000-a", "20260101T000001-b", "20260101T000002-c", rescued_name("20260101T000002-c"))
    left = {begin(store, home, attempt).id for attempt in earlier}
    mine, later = begin(store, home, "20260102T000000-d"), begin(store, home, rescued_name("20260103T000000-e"))
    neighbour = begin(store, prefix / "checkpoints-not", "20260101T000000-a")
    assert ids(store, home) == left | {mine.id, later.id}
    checkpoints = CheckpointStore(store, home)
    checkpoints.retain(Retention(newest=2), attempt="20260102T000000-d")
    assert ids(store, home) == {mine.id, later.id}
    assert ids(store, prefix / "checkpoints-not") == {neighbour.id}
    living = begin(store, home, "20260101T000001-b", step=20)  # it began after this attempt: its process lives elsewhere
    checkpoints.retain(Retention(newest=2), attempt="20260102T000000-d")
    assert living.id in ids(store, home)
    for upload in (mine, later, neighbour, living):
        upload.abort(store)
        upload.abort(store)  # one that is gone is no error
    assert ids(store, prefix) == set()


UPLOADER = """
import sys
from pathlib import Path
from components.storage import StoreUri, connect
connect(sys.argv[1]).put_file(StoreUri.parse(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.fault
@pytest.mark.slow
def test_the_parts_of_uploads_that_were_killed_are_found_and_removed(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> None:
    """Two processes are killed while they send the third part of a file; the attempt after them removes the parts of both."""
    (tmp_path / "file").write_bytes(bytes(17 * 2**20))
    with fault_proxy(rclone_endpoint) as proxy:
        for attempt in ("20260101T000000-a", "20260101T000001-b"):
            with proxy.injecting(fault := Fault("slow", "PUT", path="partNumber=3", delay_s=30.0)):
                target = str(prefix / "step-000000010" / attempt / "file")
                process = subprocess.Popen([sys.executable, "-c", UPLOADER, proxy.endpoint, target, str(tmp_path / "file")])
                try:
                    wait_until(lambda fault=fault: fault.fired == 1, timeout_s=60.0, every_s=0.02)  # type: ignore[misc]
                finally:
                    process.kill()
                    process.wait()
    store = connect(rclone_endpoint, deadline_s=5.0)
    assert len(ids(store, prefix)) == 2
    assert store.list(prefix) == []
    CheckpointStore(store, prefix).retain(Retention(newest=2), attempt="20260101T000002-c")
    assert ids(store, prefix) == set()


def test_an_upload_that_names_no_attempt_is_aborted_after_a_day(moto_endpoint: str, prefix: StoreUri, rclone_endpoint: str) -> None:
    """moto says that every upload began in 2010, rclone says when it did."""
    for endpoint, expected in ((moto_endpoint, 1), (rclone_endpoint, 0)):
        store = connect(endpoint, deadline_s=5.0)
        upload = begin(store, prefix / "samples", "x")
        assert abort_old_uploads(store, prefix) == expected
        upload.abort(store)


def test_a_store_that_does_not_list_uploads_is_no_error_and_preflight_says_so(moto_endpoint: str, prefix: StoreUri) -> None:
    with fault_proxy(moto_endpoint) as proxy:
        asked: list[str] = []

        def refuse(method: str, path: str, headers: object) -> Answer | None:
            asked.append(path)
            return refusal(403, "AccessDenied") if method == "GET" and "uploads" in path.partition("?")[2].split("&") else None

        proxy.rule = refuse
        store = connect(proxy.endpoint, deadline_s=5.0)
        CheckpointStore(store, prefix).retain(Retention(newest=2), attempt="a2")
        assert any("uploads" in path for path in asked)
        assert "s3:ListBucketMultipartUploads" in probe(store, prefix).describe()


def versioned(store: ObjectStore, bucket: str) -> None:
    store.client.create_bucket(Bucket=bucket)
    store.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def test_retention_says_once_that_a_versioned_bucket_keeps_the_bytes(moto_endpoint: str, tmp_path: Path) -> None:
    store = connect(moto_endpoint, deadline_s=5.0)
    versioned(store, "versioned-retention")
    for bucket, expected in (("versioned-retention", 1), ("bucket", 0)):
        warnings: list[str] = []
        home = StoreUri(bucket, f"tests/{tmp_path.name}")
        checkpoints = CheckpointStore(store, home, warn=warnings.append)
        for step in (1, 2, 3, 4):
            state = CheckpointState(step=step, tensors={"weights": {"w": torch.zeros(2)}}, facts={})
            checkpoints.upload(publish(state, tmp_path / bucket), "a1")
            checkpoints.retain(Retention(newest=2))
        assert [text for text in warnings if "keeps versions: the bytes of 1 deleted checkpoint stay" in text] == warnings
        assert len(warnings) == expected
        assert [entry.step for entry in checkpoints.list_committed()] == [4, 3]
    versions = store.client.list_object_versions(Bucket="versioned-retention")["Versions"]
    assert len({item["Key"].split("/")[2] for item in versions}) == 4, "the bytes of all four steps are stored"


RULES: dict[str, tuple[dict[str, object], int | None]] = {
    "for all": ({"Filter": {"Prefix": ""}, "Status": "Enabled"}, 7),
    "for a prefix above": ({"Filter": {"Prefix": "main/"}, "Status": "Enabled"}, 7),
    "for another prefix": ({"Filter": {"Prefix": "other/"}, "Status": "Enabled"}, 0),
    "that is off": ({"Filter": {"Prefix": ""}, "Status": "Disabled"}, 0),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_lifecycle_rule_that_removes_incomplete_uploads_is_found(rule: str, moto_endpoint: str) -> None:
    store = connect(moto_endpoint, deadline_s=5.0)
    bucket, (fields, days) = f"rules-{abs(hash(rule)):x}", RULES[rule]
    store.client.create_bucket(Bucket=bucket)
    assert bucket_rules(store, StoreUri(bucket, "main/x")).uploads_removed_after_days == 0
    configuration = {"Rules": [{"ID": "uploads", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}, **fields}]}
    store.client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=configuration)  # type: ignore[arg-type]
    rules = bucket_rules(store, StoreUri(bucket, "main/x"))
    assert (rules.is_versioned, rules.uploads_removed_after_days) == (False, days)
    assert ("incomplete uploads are removed after 7 days" if days else "no rule removes incomplete uploads") in rules.describe()


def test_the_probe_says_what_versions_and_incomplete_uploads_cost(moto_endpoint: str, rclone_endpoint: str, prefix: StoreUri) -> None:
    store = connect(moto_endpoint, deadline_s=5.0)
    versioned(store, "versioned-probe")
    assert (
        "versions are kept: what retention deletes is stored and paid for"
        in probe(store, StoreUri("versioned-probe", "x")).bucket.describe()
    )
    assert "no versions are kept" in probe(connect(rclone_endpoint, deadline_s=5.0), prefix).bucket.describe()
    with fault_proxy(moto_endpoint) as proxy:
        asked: list[str] = []

        def refuse(method: str, path: str, headers: object) -> Answer | None:
            if "?versioning" not in path and "?lifecycle" not in path:
                return None
            asked.append(path)
            return refusal(403, "AccessDenied")

        proxy.rule = refuse
        rules = probe(connect(proxy.endpoint, deadline_s=5.0), prefix).bucket
        assert len(asked) == 2
    assert (rules.is_versioned, rules.uploads_removed_after_days) == (None, None)
    assert "does not say whether it keeps versions" in rules.describe()


OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "s3:PutObject": lambda method, path: method == "PUT" and "partNumber" not in path,
    "s3:GetObject": lambda method, path: method in ("GET", "HEAD") and "?" not in path and path.count("/") > 2,
    "s3:ListBucket": lambda method, path: "list-type=2" in path,
    "s3:DeleteObject": lambda method, path: method == "DELETE" and "uploadId" not in path,
    "s3:AbortMultipartUpload": lambda method, path: method == "DELETE" and "uploadId" in path,
}


@pytest.mark.parametrize("right", OPERATIONS)
def test_the_probe_names_each_right_that_is_missing(right: str, moto_endpoint: str, prefix: StoreUri) -> None:
    with fault_proxy(moto_endpoint) as proxy:
        refused: list[str] = []

        def rule(method: str, path: str, headers: object) -> Answer | None:
            if not OPERATIONS[right](method, path):
                return None
            refused.append(path)
            return refusal(403, "AccessDenied")

        proxy.rule = rule
        with pytest.raises(Exception, match=f"refuses .*: AccessDenied: the right {right} is missing"):
            probe(connect(proxy.endpoint, deadline_s=30.0), prefix)
        assert refused
