"""Object storage that fails: a proxy in front of a real server injects each fault, and each is asserted to have happened."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Fault, Proxy, fault_proxy
from celebdit_testing.servers import SECRET_KEY

from components.errors import BadInput, StorageUnavailable
from components.storage import DigestMismatch, ObjectStore, StoreUri, connect
from components.storage.faults import StorageRefused
from components.storage.probe import probe
from components.stores.checkpoints import CheckpointStore
from model.checkpoint import CheckpointState, publish

pytestmark = pytest.mark.fault

SMALL = bytes(range(256)) * 40
BIG = bytes(range(251)) * 160_000  # 40 MB: five parts


@pytest.fixture(params=["rclone", "moto"])
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with fault_proxy(request.getfixturevalue(f"{request.param}_endpoint")) as running:
        yield running


@pytest.fixture
def faulty(proxy: Proxy) -> ObjectStore:
    return ready(proxy, read_timeout_s=10.0)


def ready(proxy: Proxy, *, read_timeout_s: float) -> ObjectStore:
    """Connect, and have asked already how uploads are checked."""
    store = connect(proxy.endpoint, deadline_s=60.0, read_timeout_s=read_timeout_s)
    store.upload_check(StoreUri("bucket", "tests") / "warm")
    return store


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(BIG)
    return path


def retries(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The retries that object storage logged, with attempt, cause, pause and deadline."""
    form = r"(put|get) s3://\S+ failed, attempt \d+: .+; next attempt in \d+\.\d s, giving up in \d+ s"
    return [text for text in caplog.messages if re.fullmatch(form, text)]


PASSING = [
    Fault("500", "PUT", times=2),
    Fault("503", "PUT", times=2),
    Fault("reset", "PUT", times=2),
    Fault("lost_answer", "PUT"),
    Fault("slow", "PUT", delay_s=1.5),
    Fault("flipped_upload", "PUT"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.kind)
def test_a_fault_that_passes_does_not_show_in_a_small_upload(
    proxy: Proxy, prefix: StoreUri, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(**{**vars(fault), "fired": 0})
    faulty = ready(proxy, read_timeout_s=1.0 if fault.kind == "slow" else 60.0)
    with proxy.injecting(fault):
        faulty.put_bytes(prefix / "x", SMALL)
    assert faulty.get_bytes(prefix / "x") == SMALL
    assert len(retries(caplog)) >= fault.times


@pytest.mark.parametrize("kind", ["500", "503", "reset", "lost_answer", "flipped_upload"])
def test_a_failed_part_is_uploaded_again_alone_and_a_damaged_one_restarts_the_upload(
    proxy: Proxy, faulty: ObjectStore, prefix: StoreUri, big_file: Path, kind: str
) -> None:
    with proxy.injecting(Fault(kind, "PUT", path="partNumber=2")):  # type: ignore[arg-type]
        digest = faulty.put_file(prefix / "x", big_file)
    parts = [line for line in proxy.requests if "partNumber=" in line]
    num_parts = 5
    if kind != "flipped_upload":
        assert len(parts) == num_parts + 1
    else:  # noticed at once by the part's digest, or at the end by reading back: the upload begins again
        assert num_parts + 2 <= len(parts) <= 2 * num_parts
    assert faulty.get_bytes(prefix / "x", sha256=digest) == BIG


def test_an_answer_to_a_completed_upload_may_be_lost(proxy: Proxy, faulty: ObjectStore, prefix: StoreUri, big_file: Path) -> None:
    with proxy.injecting(Fault("lost_answer", "POST", path="uploadId=")):
        digest = faulty.put_file(prefix / "x", big_file)
    assert faulty.get_bytes(prefix / "x", sha256=digest) == BIG


def test_an_upload_that_fails_for_good_is_aborted_and_leaves_no_object(proxy: Proxy, prefix: StoreUri, big_file: Path) -> None:
    store = connect(proxy.endpoint, deadline_s=0.5)
    store.upload_check(prefix / "x")
    with proxy.injecting(fault := Fault("503", "PUT", times=10**6, path="partNumber=2")):
        with pytest.raises(StorageUnavailable, match="503 SlowDown"):
            store.put_file(prefix / "x", big_file)
        fault.times = fault.fired
    assert any(line.startswith("DELETE") and "uploadId=" in line for line in proxy.requests)
    assert store.list(prefix) == []


@pytest.mark.parametrize("kind", ["500", "503", "reset", "slow", "truncated", "flipped"])
def test_a_fault_that_passes_does_not_show_in_a_download(
    proxy: Proxy, prefix: StoreUri, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = ready(proxy, read_timeout_s=1.0 if kind == "slow" else 60.0)
    digest = faulty.put_bytes(prefix / "x", SMALL)
    for get in (
        lambda: faulty.get_bytes(prefix / "x", sha256=digest),
        lambda: faulty.get_file(prefix / "x", tmp_path / "x", sha256=digest),
    ):
        with proxy.injecting(Fault(kind, "GET", delay_s=1.5)):  # type: ignore[arg-type]
            get()
    assert (tmp_path / "x").read_bytes() == SMALL
    assert len(retries(caplog)) >= 2


def test_a_download_that_breaks_off_asks_only_for_the_rest(proxy: Proxy, faulty: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    digest = faulty.put_bytes(prefix / "x", BIG[: 8 * 2**20])
    with proxy.injecting(Fault("truncated", "GET", times=2)):
        faulty.get_file(prefix / "x", tmp_path / "x", sha256=digest)
    assert proxy.ranges == ["bytes=4194304-", "bytes=6291456-"]


def test_another_process_continues_a_download(proxy: Proxy, prefix: StoreUri, tmp_path: Path) -> None:
    store = connect(proxy.endpoint, deadline_s=0.1)
    digest = store.put_bytes(prefix / "x", BIG[: 8 * 2**20])
    with proxy.injecting(Fault("truncated", "GET")), pytest.raises(StorageUnavailable):
        store.get_file(prefix / "x", tmp_path / "x", continued=True)
    assert not (tmp_path / "x").exists()
    with proxy.injecting():
        assert connect(proxy.endpoint).get_file(prefix / "x", tmp_path / "x", continued=True) == digest
    assert proxy.ranges == ["bytes=4194304-"]
    store.put_bytes(prefix / "x", SMALL)
    assert store.get_file(prefix / "x", tmp_path / "x", continued=True) == hashlib.sha256(SMALL).hexdigest()


def test_bytes_that_always_arrive_damaged_are_refused_and_never_kept(
    proxy: Proxy, faulty: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    digest = faulty.put_bytes(prefix / "x", SMALL)
    with proxy.injecting(Fault("flipped", "GET", times=3)), pytest.raises(DigestMismatch, match=f"expected {digest}"):
        faulty.get_file(prefix / "x", tmp_path / "x", sha256=digest)
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_always_arrives_damaged_is_refused(proxy: Proxy, faulty: ObjectStore, prefix: StoreUri) -> None:
    with proxy.injecting(Fault("flipped_upload", "PUT", times=3)), pytest.raises(DigestMismatch) as refused:
        faulty.put_bytes(prefix / "x", SMALL)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("kind", ["500", "503", "reset"])
def test_a_fault_that_stays_ends_at_the_deadline_with_what_was_tried(proxy: Proxy, prefix: StoreUri, kind: str) -> None:
    store = connect(proxy.endpoint, deadline_s=3.0)
    with proxy.injecting(fault := Fault(kind, "GET", times=10**6)):  # type: ignore[arg-type]
        with pytest.raises(StorageUnavailable, match=r"get s3://.* failed \d+ times? in [0-9]+ s \(last: ") as unavailable:
            store.get_bytes(prefix / "x")
        assert fault.fired >= 3
        fault.times = fault.fired
    assert unavailable.value.exit_code == 75
    assert SECRET_KEY not in unavailable.value.message + str(unavailable.value.hint) + repr(unavailable.value.__cause__)


def test_a_refusal_is_not_insisted_on(proxy: Proxy, faulty: ObjectStore, prefix: StoreUri) -> None:
    faulty.put_bytes(prefix / "x", b"x")
    with (
        proxy.injecting(fault := Fault("403", "GET", path="/x")),
        pytest.raises(StorageRefused, match=r"refuses to get .*: 403 AccessDenied"),
    ):
        faulty.get_bytes(prefix / "x")
    assert fault.fired == 1
    assert StorageRefused.exit_code == 2


def test_an_error_about_a_refused_addressing_style_names_the_one_that_works(
    proxy: Proxy, prefix: StoreUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses one style; the other is the same server without the refusal."""
    store = connect(proxy.endpoint, deadline_s=3.0)
    other = connect(proxy.endpoint, deadline_s=1.0)
    other.addressing = "virtual"
    monkeypatch.setattr(store, "_other_style", lambda: other)
    with proxy.injecting(Fault("403", "PUT")), pytest.raises(BadInput, match="refuses path-style addresses") as refused:
        probe(store, prefix)
    assert refused.value.hint == "set AWS_S3_ADDRESSING_STYLE=virtual"
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "sideways")
    with pytest.raises(BadInput, match="AWS_S3_ADDRESSING_STYLE is 'sideways'"):
        connect(proxy.endpoint)


def test_a_listing_that_is_stale_costs_the_newest_checkpoint_alone(
    faulty: ObjectStore, proxy: Proxy, prefix: StoreUri, tmp_path: Path
) -> None:
    """The proxy answers a listing as before the second checkpoint was written: the first one is continued from, none is quarantined."""
    checkpoints = CheckpointStore(faulty, prefix)
    for step in (1, 2):
        state = CheckpointState(step=step, tensors={"weights": {"a": torch.zeros(2)}}, facts={})
        checkpoints.upload(publish(state, tmp_path / "local"), "a1")
        if step == 1:
            assert [entry.step for entry in checkpoints.list_committed()] == [1]
    with proxy.injecting(Fault("stale", "GET", path="list-type=2")):
        assert [entry.step for entry in checkpoints.list_committed()] == [1]
    with proxy.injecting(Fault("stale", "GET", path="list-type=2")):
        newest = checkpoints.newest(tmp_path / "restored")
    assert newest is not None
    assert newest[0].step == 1
    assert [entry.step for entry in checkpoints.list_committed()] == [2, 1]
