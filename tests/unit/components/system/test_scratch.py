"""Temporary folders: removed at the end, also those of processes that were killed, and no others."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from components.system.scratch import temporary_folder

HOLDER = """
import time
from components.system.scratch import temporary_folder
with temporary_folder() as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def hold() -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def grow_old(folder: Path) -> None:
    os.utime(folder / ".lock", (time.time() - 3600,) * 2)


def test_it_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    with temporary_folder() as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
        assert folder.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, left = hold()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "file").exists(), "the process was killed before it could remove it"
    grow_old(left)
    with temporary_folder():
        assert not left.exists()
    assert not list(tmp_path.iterdir())


def test_what_a_living_process_uses_stays_however_old(tmp_path: Path) -> None:
    process, used = hold()
    try:
        grow_old(used)
        with temporary_folder():
            pass
        assert (used / "file").exists()
    finally:
        process.kill()
        process.wait()


def test_folders_that_are_not_of_this_kind_stay(tmp_path: Path) -> None:
    mine, link = tmp_path / "celebdit-mine", tmp_path / "celebdit-link"
    mine.mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / ".lock").touch()
    grow_old(tmp_path / "target")
    link.symlink_to(tmp_path / "target")
    with temporary_folder():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"celebdit-mine", "celebdit-link", "target"}
