"""Checkpoints in object storage: committed or absent, corrupt ones quarantined."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.steps import keys_below

from components.errors import BadInput, DataRefused
from components.storage import ObjectStore, StoredObject, StoreUri
from components.stores.checkpoint_names import COMMIT_FILE, QUARANTINE_FILE, rescued_name
from components.stores.checkpoints import CheckpointStore, Retention
from model.canonical import canonical_json
from model.checkpoint import CheckpointState, publish, read
from model.checkpoint_manifest import MANIFEST_FILE


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
    newest = checkpoints.newest(folder / "restored", **limits)
    if newest is None:
        return None
    state = read(newest[0].directory)
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
        assert [entry.step for entry in checkpoints.list_committed()] == [10]


def test_without_an_intact_checkpoint_training_does_not_silently_restart(
    checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path
) -> None:
    for step in (10, 20):
        store.put_bytes(upload(checkpoints, tmp_path, step) / "weights.safetensors", b"damaged")
    for _ in range(2):
        with pytest.raises(DataRefused, match="all of them are corrupt or incomplete"):
            checkpoints.newest(tmp_path / "restored")


@pytest.mark.parametrize("damaged", [[10], [10, 20]])
def test_a_damaged_checkpoint_before_an_intact_one_loses_nothing(
    checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path, warnings: list[str], damaged: list[int]
) -> None:
    for step in (10, 20, 30):
        uri = upload(checkpoints, tmp_path, step)
        if step in damaged:
            store.put_bytes(uri / "weights.safetensors", b"damaged")
    assert restored_step(checkpoints, tmp_path, at_most=20) == (None if 20 in damaged else 20)
    assert not [warning for warning in warnings if "training begins again" in warning]
    assert restored_step(checkpoints, tmp_path) == 30


def test_another_attempt_at_the_same_step_does_not_disturb_the_first(
    checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path
) -> None:
    upload(checkpoints, tmp_path, 20, attempt="a1")
    store.put_bytes(upload(checkpoints, tmp_path, 20, attempt="a2") / "weights.safetensors", b"damaged")
    assert restored_step(checkpoints, tmp_path) == 20


def test_retention_keeps_the_newest_and_frees_the_bytes(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    for step in (5, 10, 20, 30, 40):
        checkpoints.score(upload(checkpoints, tmp_path, step), "eval/fid_1k", abs(step - 5.0))
    deleted = checkpoints.retain(Retention(newest=2, best=1))
    assert len(deleted) == 2
    assert [entry.step for entry in checkpoints.list_committed()] == [40, 30, 5]
    assert {key.split("/")[0] for key in keys_below(store, prefix)} == {"step-000000005", "step-000000030", "step-000000040"}


def test_at_least_two_are_always_kept(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        upload(checkpoints, tmp_path, step)
    checkpoints.retain(Retention(newest=1))
    assert [entry.step for entry in checkpoints.list_committed()] == [30, 20]


def test_retention_keeps_one_checkpoint_after_every_milestone(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    for step in (5, 10, 12, 21, 25, 33, 40, 41):
        upload(checkpoints, tmp_path, step)
    checkpoints.retain(Retention(newest=2, every_steps=10))
    assert sorted(entry.step for entry in checkpoints.list_committed()) == [10, 21, 33, 40, 41]


def test_the_best_is_the_lowest_of_each_metric(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    for step, fid, kid in ((1, 9.0, 0.1), (2, 3.0, 0.9), (3, 5.0, 0.5), (4, 8.0, 0.8), (5, 8.5, 0.7)):
        uri = upload(checkpoints, tmp_path, step)
        checkpoints.score(uri, "eval/fid_50k", fid)
        checkpoints.score(uri, "eval/kid_mean", kid)
    checkpoints.retain(Retention(newest=2, best=1))
    assert sorted(entry.step for entry in checkpoints.list_committed()) == [1, 2, 4, 5]


def test_uncommitted_files_of_a_dead_attempt_are_deleted_but_never_a_living_ones(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    """Also of what an attempt uploads for an earlier one, whose name sorts before those of all attempts."""
    dead, living = "20260101T000000-a", "20260103T000000-c"
    for attempt in (dead, rescued_name(dead), living, rescued_name(living)):
        store.delete(upload(checkpoints, tmp_path, 10, attempt=attempt) / COMMIT_FILE)
    upload(checkpoints, tmp_path, 20, attempt="20260102T000000-b")
    checkpoints.retain(Retention(newest=2), attempt="20260102T000000-b")
    left = {key.split("/")[1] for key in keys_below(store, prefix)}
    assert left == {"20260102T000000-b", living, rescued_name(living)}


def test_an_earlier_attempt_that_lives_completes_what_a_later_one_removed(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    """A later attempt, on another machine, cleans up whenever the earlier one has stored a file."""
    living, later = "20260101T000000-a", "20260102T000000-b"
    looked: list[bool] = []
    other = CheckpointStore(store, prefix)
    put_file = store.put_file

    def put_and_let_the_other_clean_up(uri: StoreUri, path: Path) -> str:
        digest = put_file(uri, path)
        other.retain(Retention(newest=2), attempt=later)
        looked.append(store.exists(uri))
        return digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "put_file", put_and_let_the_other_clean_up)
        upload(checkpoints, tmp_path, 10, attempt=living)
        upload(checkpoints, tmp_path, 20, attempt=living)
    assert False in looked, "it lost what it was writing at the first look"
    assert set(looked[1:]) == {True}, "and nothing that came later"
    assert [entry.step for entry in checkpoints.list_committed()] == [20, 10]
    for entry in checkpoints.list_committed():
        checkpoints.verify(entry.uri)


def test_a_checkpoint_that_is_committed_while_a_later_attempt_cleans_up_is_kept(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = upload(checkpoints, tmp_path, 10, attempt="20260101T000000-a")
    commit = store.get_bytes(uri / COMMIT_FILE)
    store.delete(uri / COMMIT_FILE)
    other, listed = CheckpointStore(store, prefix), store.list

    def list_and_let_the_first_commit(prefix: StoreUri) -> list[StoredObject]:
        objects = listed(prefix)
        store.put_bytes(uri / COMMIT_FILE, commit)
        return objects

    monkeypatch.setattr(store, "list", list_and_let_the_first_commit)
    assert other.remove_abandoned(before="20260102T000000-b") == 0
    checkpoints.verify(uri)


def test_notes_come_back_and_do_not_change_the_digest(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    checkpoint = publish(CheckpointState(step=1, tensors={"weights": {"w": torch.ones(2)}}, facts={}), tmp_path / "local")
    uri = checkpoints.upload(checkpoint, "a1", notes={"device_hours": 1.5})
    assert checkpoints.notes(uri) == {"device_hours": 1.5}
    assert checkpoints.digest(uri) == checkpoint.digest


def test_another_format_is_refused_and_left_alone(checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path) -> None:
    upload(checkpoints, tmp_path, 10)
    newest = upload(checkpoints, tmp_path, 20)
    manifest = store.get_bytes(newest / MANIFEST_FILE).replace(b'"format":1', b'"format":2')
    store.put_bytes(newest / MANIFEST_FILE, manifest)
    store.put_bytes(newest / COMMIT_FILE, canonical_json({"digest": hashlib.sha256(manifest).hexdigest(), "step": 20}))
    calls: tuple[Callable[[], object], ...] = (
        lambda: checkpoints.newest(tmp_path / "restored"),
        lambda: checkpoints.fetch(newest, tmp_path / "fetched"),
        lambda: checkpoints.state(newest),
        lambda: checkpoints.verify(newest),
        checkpoints.complete_steps,
    )
    for call in calls:
        with pytest.raises(BadInput, match=f"{newest}: checkpoint format 2 is not 1"):
            call()
    assert not store.exists(newest / QUARANTINE_FILE)


class _Crash(Exception):
    """The process ends here."""


class _CrashingStore:
    """A store that ends the process at the n-th write."""

    def __init__(self, store: ObjectStore, writes: int) -> None:
        self._store, self._left = store, writes

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        return self._counted(call) if name in ("put_file", "put_bytes", "delete") else call

    def _counted(self, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self._left == 0:
                raise _Crash
            self._left -= 1
            return call(*arguments, **options)

        return counted


@pytest.mark.parametrize("writes", range(9))
def test_a_crash_between_any_two_writes_leaves_the_old_or_the_new_checkpoint(
    checkpoints: CheckpointStore, store: ObjectStore, prefix: StoreUri, tmp_path: Path, writes: int
) -> None:
    for step in (5, 8, 10):
        upload(checkpoints, tmp_path, step, attempt="a1")
    crashing = CheckpointStore(_CrashingStore(store, writes), prefix)
    with pytest.raises(_Crash):
        upload(crashing, tmp_path, 20, attempt="a2")
        crashing.retain(Retention(newest=2), attempt="a2")
    expected = 20 if writes >= 4 else 10
    assert restored_step(checkpoints, tmp_path) == expected
    upload(checkpoints, tmp_path, 30, attempt="a3")
    checkpoints.retain(Retention(newest=2), attempt="a3")
    assert [entry.step for entry in checkpoints.list_committed()] == [30, expected]
    assert {key.split("/")[0] for key in keys_below(store, prefix)} == {"step-000000030", f"step-{expected:09d}"}, "no debris"


def test_a_damaged_score_does_not_stop_retention(checkpoints: CheckpointStore, store: ObjectStore, tmp_path: Path) -> None:
    for step in (5, 10, 20, 30):
        uri = upload(checkpoints, tmp_path, step)
        checkpoints.score(uri, "eval/fid_1k", float(step))
        if step == 10:
            store.put_bytes(uri / "SCORE-eval.fid_1k.json", b"{}")
    checkpoints.retain(Retention(newest=2, best=1))
    assert [entry.step for entry in checkpoints.list_committed()] == [30, 20, 5]
