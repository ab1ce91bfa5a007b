"""EMA snapshots while object storage is unavailable: they wait on local disk, training does not wait for them."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe
from celebdit_testing.servers import rclone_server
from celebdit_testing.steps import step_context
from celebdit_testing.trainings import run_train, small_faces

from components.errors import StorageUnavailable
from components.storage import StoreUri, connect
from components.stores.checkpoints import CheckpointStore
from components.system.ports import free_port
from components.system.work_folders import WorkFolder
from components.train.checkpointing.ema_snapshots import SnapshotSink
from model.checkpoint import CheckpointState, publish
from model.config import Recipe
from model.distributed import World
from model.interfaces import Outputs
from model.trainer import Placement, Trainer

STEPS, EVERY = 20, 2
RECIPE = tiny_recipe(total_steps=STEPS, ema_snapshot_every_steps=EVERY)


class Place:
    """A store that can be unavailable, and what is noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.noted: list[str] = []

    def serving(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(rclone_server(self.folder / "s3", port=self.port))
        return stack

    def snapshots(self, deadline_s: float = 0.5) -> CheckpointStore:
        store = connect(f"http://127.0.0.1:{self.port}", deadline_s=deadline_s)
        return CheckpointStore(store, StoreUri("bucket", "snapshots"))

    def sink(self, deadline_s: float = 0.5) -> SnapshotSink:
        return SnapshotSink(
            self.folder / "queue", self.snapshots(deadline_s), attempt="a1", facts={"identity": "x"}, note=self.noted.append
        )

    def trainer(self, sink: SnapshotSink | None, recipe: Recipe = RECIPE) -> tuple[Trainer, LocalSink]:
        checkpoints = LocalSink(self.folder / "checkpoints")
        outputs = Outputs(MemoryRecorder(), checkpoints, sink)
        return Trainer(recipe, tiny_pack(self.folder / "pack"), Placement(World(), torch.device("cpu")), outputs), checkpoints


@pytest.fixture
def place(tmp_path: Path, s3_credentials: None) -> Place:
    return Place(tmp_path)


def test_training_goes_on_without_object_storage_and_no_snapshot_is_lost(place: Place) -> None:
    sink = place.sink(deadline_s=20.0)  # as long as training with a waiting sink would take for each snapshot
    trainer, checkpoints = place.trainer(sink)
    at_s: list[float] = []
    with pytest.raises(StorageUnavailable), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink, "drain", lambda: (_ for _ in ()).throw(StorageUnavailable("not waited for here")))
        trainer.run(on_step=lambda step, loss: at_s.append(time.monotonic()))
    assert len(at_s) == STEPS
    assert at_s[-1] - at_s[0] < 15.0, "training waited for object storage"
    assert [checkpoint.step for checkpoint in checkpoints.published] == [STEPS], "the last checkpoint comes before the wait for snapshots"
    sink.settle()
    assert len(list((place.folder / "queue").glob("step-*"))) == STEPS // EVERY
    with place.serving():
        sink.drain()
        assert [entry.step for entry in place.snapshots().list_committed()] == list(range(STEPS, 0, -EVERY))
        assert not list((place.folder / "queue").glob("step-*"))


def test_snapshots_are_uploaded_when_the_store_is_back_while_training(place: Place) -> None:
    sink = place.sink()
    states = [CheckpointState(step, {"ema-0.1": {"w": torch.full((3,), float(step))}}, {}) for step in (1, 2, 3)]
    for state in states[:2]:
        sink.submit(lambda state=state: state)  # type: ignore[misc]
    sink.settle()
    end_s = time.monotonic() + 20
    while not place.noted:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert "stay on local disk until they can be uploaded" in place.noted[0]
    with place.serving():
        sink.submit(lambda: states[2])
        while [entry.step for entry in place.snapshots().list_committed()] != [3, 2, 1]:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_the_end_of_a_training_reports_snapshots_that_did_not_arrive(place: Place) -> None:
    trainer, checkpoints = place.trainer(place.sink(), tiny_recipe(total_steps=2, ema_snapshot_every_steps=1))
    with pytest.raises(StorageUnavailable):
        trainer.run()
    assert [checkpoint.step for checkpoint in checkpoints.published] == [2]
    assert len(list((place.folder / "queue").glob("step-*"))) == 2


def test_the_next_attempt_uploads_what_one_left_and_sets_damaged_ones_aside(place: Place) -> None:
    for step in (1, 2, 3):
        publish(CheckpointState(step, {"ema-0.1": {"w": torch.ones(3)}}, {"identity": "x"}), place.folder / "queue")
    (place.folder / "queue" / "step-000000002" / "ema-0.1.safetensors").write_bytes(b"damaged")
    with place.serving():
        sink = place.sink()
        sink.rescue()
        sink.drain()
        assert [entry.step for entry in place.snapshots().list_committed()] == [3, 1]
    assert any("uploading 3 EMA snapshots that an earlier attempt left on local disk" in note for note in place.noted)
    assert any("is damaged and was set aside" in note for note in place.noted)
    assert (place.folder / "queue" / ".damaged-step-000000002" / "ema-0.1.safetensors").read_bytes() == b"damaged"


def test_a_finished_step_uploads_snapshots_that_were_left(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> None:
    context = step_context("train", tmp_path, str(prefix), endpoint=rclone_endpoint)
    dataset, recipe = small_faces(context), tiny_recipe(total_steps=2, ema_snapshot_every_steps=1)
    trained = run_train(recipe, dataset, context)
    snapshots = CheckpointStore(context.store, context.layout.run(trained.run_key).snapshots)
    first = snapshots.list_committed()[-1].uri
    snapshots.fetch(first, context.scratch(WorkFolder.RUNS, trained.run_key, "snapshots"))
    for item in context.store.list(first):
        context.store.delete(item.uri)
    assert [entry.step for entry in snapshots.list_committed()] == [2]
    assert run_train(recipe, dataset, context) == trained
    assert [entry.step for entry in snapshots.list_committed()] == [2, 1]
