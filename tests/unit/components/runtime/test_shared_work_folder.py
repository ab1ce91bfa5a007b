"""The default work folder of a step, whose name every user of the machine knows: what another user put there is not used."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.strangers import STRANGER

from components.runtime.context import step
from components.system.child_environment import compiler_caches
from components.system.work_folders import WorkFolder

ENVIRONMENT = {"CELEBDIT_STORE": "s3://bucket/prefix", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "CELEBDIT_RUN_ID": "r1"}


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like /tmp, and a shell with umask 000."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    before = os.umask(0)
    yield shared
    os.umask(before)


def runs(**environment: str) -> bool:
    """Whether a step begins; it makes a folder of its own, and is refused with exit code 2."""
    code: object = 0
    try:
        with step("train", {**ENVIRONMENT, **environment}) as context:
            context.scratch(WorkFolder.RUNS)
    except SystemExit as ended:
        code = ended.code
    return {0: True, 2: False}[code]


def test_the_work_folder_is_its_users_alone_whatever_the_umask(shared: Path) -> None:
    assert runs()
    assert stat.S_IMODE((shared / "celebdit").stat().st_mode) == 0o700
    assert runs(), "it is used again"
    (shared / "celebdit").chmod(0o777)
    assert runs(), "of an earlier version"
    assert stat.S_IMODE((shared / "celebdit").stat().st_mode) == 0o700


def test_a_work_folder_of_another_user_is_refused(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"uid {os.geteuid()} cannot give a folder to another user")
    (shared / "celebdit").mkdir()
    os.chown(shared / "celebdit", STRANGER, STRANGER)
    assert not runs()
    assert not list((shared / "celebdit").iterdir()), "nothing was written into it"
    assert f"belongs to another user (uid {STRANGER})" in capsys.readouterr().err


def test_a_link_in_place_of_the_work_folder_is_refused(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (shared / "celebdit").symlink_to(private)
    assert not runs()
    assert not list(private.iterdir()), "nothing was written through it"
    assert "is a link, which another user can have made" in capsys.readouterr().err


def test_a_folder_that_was_named_is_used_as_it_is(shared: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o777)
    (shared / "link").symlink_to(volume)
    assert runs(CELEBDIT_WORK_DIR=str(shared / "link"))
    assert (volume / "runs").is_dir()
    assert not (shared / "celebdit").exists()


@pytest.mark.parametrize("kind", WorkFolder)
def test_a_work_folder_that_is_open_to_others_is_known_by_any_folder_of_a_step(shared: Path, kind: WorkFolder) -> None:
    (shared / "celebdit" / kind).mkdir(parents=True)
    assert runs()
    for folder in (shared / "celebdit", shared / "celebdit" / kind):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_step_makes_no_folder_that_has_no_name(tmp_path: Path) -> None:
    with step("train", {**ENVIRONMENT, "CELEBDIT_WORK_DIR": str(tmp_path)}) as context:
        with pytest.raises(ValueError, match="'unknown' is not a valid WorkFolder"):
            context.scratch("unknown")  # type: ignore[arg-type]
        caches = compiler_caches(context.settings.work_dir)
    assert list(tmp_path.iterdir()) == []
    assert {Path(cache).relative_to(tmp_path).parts[0] for cache in caches.values()} <= set(WorkFolder)
