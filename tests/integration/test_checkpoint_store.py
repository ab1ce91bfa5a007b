"""Checkpoints in object storage: committed or not there, damaged ones set aside."""

from pathlib import Path

import pytest
import torch
from celebdit_testing.steps import keys_below

from components.checkpoints import COMMIT_FILE, QUARANTINE_FILE, CheckpointStore
from components.errors import DataRefused
from components.storage import ObjectStore, StoreUri
from model.checkpoint import CheckpointState, publish, read


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def checkpoints(store: ObjectStore, prefix: StoreUri, warnings: list[str]) -> CheckpointStore:
    return CheckpointStore(store, prefix, warn=warnings.append)


def upload(checkpoints: CheckpointStore, folder: Path, step: int, attempt: str = "a1") -> StoreUri:
    state = CheckpointState(step=step, tensors={"weights": {"w": torch.full((8,), float(step))}}, facts={"n": step})
    return checkpoints.upload(publish(state, folder / "local"), attempt)


def restored_step(checkpoints: CheckpointStore, folder: Path, **limits: int) -> int | None:
    found = checkpoints.newest(folder / "restored", **limits)
    if found is None:
        return None
    state = read(found[0].directory)
    assert state.tensors["weights"]["w"].tolist() == [float(state.step)] * 8
    return state.step


def test_a_run_without_checkpoints_has_none(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    assert restored_step(checkpoints, tmp_path) is None


def test_the_newest_is_restored_on_an_empty_disk(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    for step in (10, 30, 20):
        upload(checkpoints, tmp_path, step)
    assert restored_step(checkpoints, tmp_path) == 30
    assert restored_step(checkpoints, tmp_path, at_most=25) == 20


def test_an_upload_that_was_not_committed_does_not_exist(checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path) -> None:
    upload(checkpoints, tmp_path, 10)
    store.delete(upload(checkpoints, tmp_path, 20) / COMMIT_FILE)
    assert restored_step(checkpoints, tmp_path) == 10


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "MANIFEST.json", "COMMIT.json"])
@pytest.mark.parametrize("damage", ["other bytes", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path, warnings: list[str], name: str, damage: str
) -> None:
    upload(checkpoints, tmp_path, 10)
    newest = upload(checkpoints, tmp_path, 20)
    if damage == "gone":
        store.delete(newest / name)
    else:
        store.put_bytes(newest / name, b'{"digest": "0", "step": 20}')
    assert restored_step(checkpoints, tmp_path) == 10
    if (name, damage) != ("COMMIT.json", "gone"):
        assert len(warnings) == 1
        assert store.exists(newest / QUARANTINE_FILE)
        assert [entry.step for entry in checkpoints.committed()] == [10]


def test_if_none_is_whole_training_does_not_silently_start_again(checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path) -> None:
    for step in (10, 20):
        store.put_bytes(upload(checkpoints, tmp_path, step) / "weights.safetensors", b"damaged")
    for _ in range(2):
        with pytest.raises(DataRefused, match="none of them is whole"):
            checkpoints.newest(tmp_path / "restored")


def test_another_attempt_at_the_same_step_does_not_disturb_the_first(
    checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path
) -> None:
    upload(checkpoints, tmp_path, 20, attempt="a1")
    store.put_bytes(upload(checkpoints, tmp_path, 20, attempt="a2") / "weights.safetensors", b"damaged")
    assert restored_step(checkpoints, tmp_path) == 20


def test_retention_keeps_the_newest_and_frees_the_bytes(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    spared = upload(checkpoints, tmp_path, 5)
    for step in (10, 20, 30, 40):
        upload(checkpoints, tmp_path, step)
    deleted = checkpoints.keep_newest(2, spared=[spared])
    assert len(deleted) == 2
    assert [entry.step for entry in checkpoints.committed()] == [40, 30, 5]
    assert {key.split("/")[1] for key in keys_below(store, prefix)} == {"step-000000005", "step-000000030", "step-000000040"}


def test_at_least_two_are_always_kept(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        upload(checkpoints, tmp_path, step)
    checkpoints.keep_newest(1)
    assert [entry.step for entry in checkpoints.committed()] == [30, 20]
