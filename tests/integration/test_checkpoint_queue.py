"""Checkpoints on local disk while object storage is unavailable: they do not fill the disk, and the newest is uploaded later."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Proxy, fault_proxy, refusal

from components.storage import StoreUri, connect
from components.storage.faults import StorageRefused
from components.stores.checkpoints import CheckpointStore, Retention
from components.train.checkpointing.uploads import UploadingSink
from model.checkpoint import CheckpointState


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(moto_endpoint) as proxy:
        yield proxy


class Queue:
    """The sink of one attempt, and what it notes."""

    def __init__(self, proxy: Proxy, prefix: StoreUri, folder: Path, attempt: str = "a1") -> None:
        self.folder, self.noted = folder, list[str]()
        self.checkpoints = CheckpointStore(connect(proxy.endpoint, deadline_s=5.0), prefix)
        self.sink = UploadingSink(
            folder, self.checkpoints, attempt=attempt, retention=Retention(newest=2), facts={}, note=self.noted.append
        )

    def submit(self, *steps: int) -> None:
        for step in steps:
            tensors = {"weights": {"w": torch.full((3,), float(step))}}
            self.sink.submit(lambda step=step, tensors=tensors: CheckpointState(step=step, tensors=tensors, facts={}))  # type: ignore[misc]
            with suppress(StorageRefused):
                self.sink.drain()

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def test_an_outage_of_many_checkpoints_keeps_two_on_disk_and_loses_none_that_is_needed(
    proxy: Proxy, prefix: StoreUri, tmp_path: Path
) -> None:
    queue = Queue(proxy, prefix, tmp_path / "queue")
    queue.submit(1)
    proxy.rule = lambda method, path, headers: refusal(400, "ExpiredToken")
    queue.submit(*range(2, 7))
    with pytest.raises(StorageRefused, match="ExpiredToken"):
        queue.sink.drain()
    names = ["step-000000005", "step-000000006"]
    assert queue.on_disk() == sorted([*names, *(f"{name}.notes.json" for name in names)])
    assert len(queue.noted) == 5, "one note for each that is not durable"
    proxy.rule = lambda method, path, headers: None
    Queue(proxy, prefix, tmp_path / "queue", "a2").sink.rescue()
    assert [entry.step for entry in queue.checkpoints.list_committed()] == [6, 1]


def test_what_waits_for_its_upload_is_not_pruned_by_one_before_it(proxy: Proxy, prefix: StoreUri, tmp_path: Path) -> None:
    queue = Queue(proxy, prefix, tmp_path / "queue")
    queue.sink._prune_local(1, keep=1)  # nothing is there yet
    for step in (1, 2, 3, 4):
        (tmp_path / "queue" / f"step-{step:09d}").mkdir(parents=True)
    queue.sink._prune_local(2, keep=1)
    assert queue.on_disk() == ["step-000000002", "step-000000003", "step-000000004"]


def test_damaged_checkpoints_of_later_steps_do_not_take_the_place_of_one_that_is_needed(
    proxy: Proxy, prefix: StoreUri, tmp_path: Path
) -> None:
    """As an attempt leaves them whose machine lost power: the next one trains these steps again."""
    queue = Queue(proxy, prefix, tmp_path / "queue")
    proxy.rule = lambda method, path, headers: refusal(400, "ExpiredToken")
    queue.submit(1, 2)
    for step in (8, 9):
        (tmp_path / "queue" / f"step-{step:09d}").mkdir()
    queue.sink._prune_local(3, keep=2)  # after step 3 could not be written
    proxy.rule = lambda method, path, headers: None
    Queue(proxy, prefix, tmp_path / "queue", "a2").sink.rescue()
    assert [entry.step for entry in queue.checkpoints.list_committed()] == [2]
