"""Limits on the size of a file are named as what they are, not as a full disk or a server that does not start."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from components.errors import BadInput, TemporaryFailure
from components.system import disk
from components.system.disk import DiskFull, full_disk_is_named, is_full, require_room, require_writable

LIMIT_BYTES = 2**20


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process may have 1 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_limit_below_what_a_folder_must_hold_is_refused(tmp_path: Path) -> None:
    require_writable(tmp_path, advice="", room_bytes=LIMIT_BYTES)
    with pytest.raises(BadInput, match=r"needs files of 33\.6 MB, and files may have at most 1\.0 MB here") as refused:
        require_writable(tmp_path, advice="", room_bytes=32 * 2**20)
    assert "ulimit -f" in str(refused.value.hint)


@pytest.mark.usefixtures("small_files")
def test_a_file_that_grows_to_the_limit_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(TemporaryFailure, match=r"files may have at most 1\.0 MB here") as failed, full_disk_is_named(tmp_path):
        (tmp_path / "file").write_bytes(bytes(2 * LIMIT_BYTES))
    assert isinstance(failed.value, DiskFull)
    assert "is full" not in failed.value.message


def test_a_full_disk_says_how_the_folder_in_question_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="what is kept there needs") as home:
        require_writable(tmp_path, advice="choose another folder with --home", room_bytes=2**60)
    assert "--home" in str(home.value.hint)
    assert "CELEBDIT_WORK_DIR" not in str(home.value.hint)
    with pytest.raises(DiskFull) as work:
        require_room(tmp_path, "a run", 2**60)
    assert "CELEBDIT_WORK_DIR" in str(work.value.hint)


def test_an_error_of_the_database_module_that_has_no_code_stays_what_it_is(tmp_path: Path) -> None:
    """As Python raises for text that is not UTF-8 in a damaged database."""
    with closing(sqlite3.connect(":memory:")) as database:
        with pytest.raises(sqlite3.OperationalError, match="Could not decode") as failed, full_disk_is_named(tmp_path):
            database.execute("select cast(x'ff' as text)").fetchall()
        assert not is_full(failed.value, tmp_path)


def test_of_several_disks_the_one_without_inodes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_inodes, fuller = tmp_path / "without_inodes", tmp_path / "fuller"
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 2**40 if folder == without_inodes else 2**35)
    monkeypatch.setattr(disk, "free_files", lambda folder: 0 if folder == without_inodes else 10**6)
    with (
        pytest.raises(DiskFull, match=rf"disk of {without_inodes} is full, it takes too few files"),
        full_disk_is_named(without_inodes, fuller),
    ):
        sqlite3.connect(tmp_path / "missing" / "database")
