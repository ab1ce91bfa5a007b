"""Listings of a store that is behind, empty or long: what is found is whole, and nothing newer is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Fault, Proxy, fault_proxy

from components.storage import ObjectStore, StoreUri, connect
from components.stores.checkpoints import CheckpointStore, Retention
from model.canonical import canonical_json
from model.checkpoint import CheckpointState, publish

LISTING = "list-type=2"


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(moto_endpoint) as running:
        yield running


@pytest.fixture
def behind(proxy: Proxy) -> ObjectStore:
    return connect(proxy.endpoint, deadline_s=5.0)


def upload(checkpoints: CheckpointStore, folder: Path, *steps: int) -> None:
    for step in steps:
        state = CheckpointState(step=step, tensors={"weights": {"w": torch.full((8,), float(step))}}, facts={"n": step})
        checkpoints.upload(publish(state, folder / "local"), "a1")


def newest_step(checkpoints: CheckpointStore, folder: Path) -> int | None:
    newest = checkpoints.newest(folder / "restored")
    return None if newest is None else newest[0].step


def test_a_stale_listing_gives_an_older_whole_checkpoint_and_the_next_one_the_newest(
    proxy: Proxy, behind: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(behind, prefix)
    upload(checkpoints, tmp_path, 10)
    assert newest_step(checkpoints, tmp_path) == 10
    upload(checkpoints, tmp_path, 20)
    with proxy.injecting(Fault("stale", "GET", path=LISTING)):
        assert newest_step(checkpoints, tmp_path) == 10
    assert newest_step(checkpoints, tmp_path) == 20


def test_what_is_deleted_by_a_stale_listing_is_never_the_newest(
    proxy: Proxy, behind: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    checkpoints = CheckpointStore(behind, prefix)
    upload(checkpoints, tmp_path, 10, 20, 30)
    assert newest_step(checkpoints, tmp_path) == 30
    upload(checkpoints, tmp_path, 40)
    with proxy.injecting(Fault("stale", "GET", path=LISTING)):
        checkpoints.retain(Retention(newest=2), attempt="a2")
    assert sorted(entry.step for entry in checkpoints.list_committed()) == [20, 30, 40]
    assert newest_step(checkpoints, tmp_path) == 40


def test_an_empty_listing_deletes_nothing(proxy: Proxy, behind: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    checkpoints = CheckpointStore(behind, prefix)
    upload(checkpoints, tmp_path, 10, 20)
    with proxy.injecting(Fault("empty_list", "GET", times=2, path=LISTING)):
        assert newest_step(checkpoints, tmp_path) is None
        assert checkpoints.retain(Retention(newest=2), attempt="a2") == []
    assert newest_step(checkpoints, tmp_path) == 20


@pytest.mark.fault
@pytest.mark.slow
def test_more_keys_than_a_page_holds_are_all_listed(proxy: Proxy, behind: ObjectStore, moto_endpoint: str, prefix: StoreUri) -> None:
    client = connect(moto_endpoint).client
    for number in range(1003):
        client.put_object(Bucket=prefix.bucket, Key=f"{prefix.key}/many/{number:05d}", Body=b"x")
    proxy.requests.clear()
    names = [item.uri.name for item in behind.list(prefix / "many")]
    assert names == [f"{number:05d}" for number in range(1003)]
    assert sum(LISTING in request for request in proxy.requests) == 2, "the listing has two pages"


def test_an_expired_token_during_an_upload_is_waited_for(proxy: Proxy, behind: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    checkpoints = CheckpointStore(behind, prefix)
    behind.upload_check(prefix / "warm")
    with proxy.injecting(Fault("expired", "PUT", times=3, path="step-000000010")):
        upload(checkpoints, tmp_path, 10)
    assert newest_step(checkpoints, tmp_path) == 10


def test_foreign_objects_between_the_checkpoints_are_ignored(behind: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    warnings: list[str] = []
    checkpoints = CheckpointStore(behind, prefix, warn=warnings.append)
    upload(checkpoints, tmp_path, 10, 20, 30)
    for key in ("COMMIT.json", "notes/COMMIT.json", "step-x/a1/COMMIT.json", f"step-{'9' * 40}/a1/COMMIT.json", "step-1/COMMIT.json"):
        behind.client.put_object(Bucket=prefix.bucket, Key=f"{prefix.key}/{key}", Body=b"{}")
    for entry, content in zip(checkpoints.list_committed(), (b"", b"[]", canonical_json({"metric": "m", "value": "x"})), strict=True):
        behind.put_bytes(entry.uri / "SCORE-m.json", content)
    assert [entry.step for entry in checkpoints.list_committed()] == [30, 20, 10]
    checkpoints.retain(Retention(newest=2, best=1))
    assert len(warnings) == 3
    assert newest_step(checkpoints, tmp_path) == 30
