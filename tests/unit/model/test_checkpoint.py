"""Local checkpoints: complete or absent, verified or refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint import CheckpointState, publish, read
from model.checkpoint_manifest import (
    MANIFEST_FILE,
    Checkpoint,
    CheckpointInvalid,
    UnsupportedCheckpointFormat,
    list_checkpoints,
    newest_valid,
    verify,
)


class Crash(Exception):
    pass


def state(step: int, value: float = 1.0) -> CheckpointState:
    tensors = {"weights": {"a": torch.full((3, 2), value), "b": torch.arange(4.0)}, "optimizer": {"m": torch.zeros(5)}}
    return CheckpointState(step=step, tensors=tensors, facts={"images_seen": step * 8, "note": "käse"})


def same(a: CheckpointState, b: CheckpointState) -> bool:
    tensors_equal = all(torch.equal(a.tensors[g][n], b.tensors[g][n]) for g in a.tensors for n in a.tensors[g])
    return (
        a.step == b.step
        and a.facts == b.facts
        and {g: set(t) for g, t in a.tensors.items()} == {g: set(t) for g, t in b.tensors.items()}
        and tensors_equal
    )


def crash_points(folder: Path, *, again: bool) -> list[str]:
    """Return the points that publishing a step passes, for the first time or `again`."""
    points: list[str] = []
    if again:
        publish(state(1), folder)
    publish(state(1), folder, crash=points.append)
    assert ("old one retired" in points) == again
    return points


def test_what_was_published_is_read_back(tmp_path: Path) -> None:
    published_one = publish(state(7), tmp_path)
    assert same(read(published_one.directory), state(7))
    assert read(published_one.directory, groups=["optimizer"]).tensors.keys() == {"optimizer"}


def test_equal_states_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    digests = [publish(s, tmp_path / str(i)).digest for i, s in enumerate((state(7), state(7), state(8), state(7, value=2.0)))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_crash_at_any_point_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    points = crash_points(tmp_path / "collect", again=False)
    assert len(points) >= 7
    for number, point in enumerate(points):
        folder = tmp_path / str(number)
        publish(state(10), folder)

        def crash(reached: str, point: str = point) -> None:
            if reached == point:
                raise Crash(point)

        with pytest.raises(Crash, match=f"^{point}$"):
            publish(state(20), folder, crash=crash)
        newest = newest_valid(folder)
        assert newest is not None, point
        assert newest.step in (10, 20), point
        assert same(read(newest.directory), state(newest.step)), point


def test_a_crash_while_a_step_is_published_again_keeps_an_intact_checkpoint(tmp_path: Path) -> None:
    for number, point in enumerate(crash_points(tmp_path / "collect", again=True)):
        folder = tmp_path / str(number)
        publish(state(10), folder)
        publish(state(20, value=1.0), folder)

        def crash(reached: str, point: str = point) -> None:
            if reached == point:
                raise Crash(point)

        with pytest.raises(Crash, match=f"^{point}$"):
            publish(state(20, value=2.0), folder, crash=crash)
        newest = newest_valid(folder)
        assert newest is not None, point
        assert any(same(read(newest.directory), s) for s in (state(10), state(20, value=1.0), state(20, value=2.0))), point


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_any_damage_to_any_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    good, bad = publish(state(1), tmp_path), publish(state(2), tmp_path)
    path = bad.directory / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(CheckpointInvalid):
        read(bad.directory)
    newest = newest_valid(tmp_path)
    assert newest is not None
    assert newest.directory == good.directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """Two complete checkpoints under one root."""
    root = tmp_path_factory.mktemp("pair")
    return publish(state(1), root), publish(state(2), root)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_or_cut_anywhere_is_found(pair: tuple[Checkpoint, Checkpoint], data: st.DataObject) -> None:
    good, bad = pair
    name = data.draw(st.sampled_from([*bad.files, MANIFEST_FILE]))
    raw = (bad.directory / name).read_bytes()
    content = bytearray(raw)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    (bad.directory / name).write_bytes(content)
    try:
        with pytest.raises((CheckpointInvalid, UnsupportedCheckpointFormat)):
            read(bad.directory)
        newest = newest_valid(bad.directory.parent)
    finally:
        (bad.directory / name).write_bytes(raw)
    assert newest is not None
    assert name == MANIFEST_FILE or newest.directory == good.directory


def test_an_extra_file_is_refused(tmp_path: Path) -> None:
    checkpoint = publish(state(1), tmp_path)
    (checkpoint.directory / "evil.pkl").write_bytes(b"x")
    with pytest.raises(CheckpointInvalid, match=r"evil\.pkl is extra"):
        verify(checkpoint.directory)


@pytest.mark.parametrize("name", ["../weights.safetensors", "/etc/passwd", ".hidden", "a\\b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    checkpoint = publish(state(1), tmp_path)
    manifest = json.loads((checkpoint.directory / MANIFEST_FILE).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "size_bytes": 1}
    (checkpoint.directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointInvalid, match="outside its directory"):
        verify(checkpoint.directory)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = publish(state(1), tmp_path)
    manifest = json.loads((checkpoint.directory / MANIFEST_FILE).read_text())
    (checkpoint.directory / MANIFEST_FILE).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UnsupportedCheckpointFormat, match="format 99"):
        verify(checkpoint.directory)


def test_checkpoints_are_listed_newest_first(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        publish(state(step), tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000100", "step-000000020", "step-000000005"]
