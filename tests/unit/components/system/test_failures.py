"""Errors of the operating system, as people are shown them."""

import os
import tempfile
from pathlib import Path

import pytest

from components.system.failures import os_failure


@pytest.mark.parametrize(("name", "subject"), [("ingest/x.lock", "ingest in its path"), ("ingest", "it")])
def test_who_may_not_use_a_path_learns_whose_it_is_and_its_mode(name: str, subject: str, tmp_path: Path) -> None:
    """As of two users who share a work folder, the first of whom has umask 077."""
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest").chmod(0o700)
    failure = os_failure(PermissionError(13, "Permission denied", str(tmp_path / name)))
    assert failure is not None
    assert failure.exit_code == 2
    owner = f"({subject} belongs to user {os.geteuid()} and group {(tmp_path / 'ingest').stat().st_gid}, with mode 0700)"
    assert failure.message == f"{tmp_path / name} cannot be used: Permission denied {owner}"


def test_a_file_that_its_folder_keeps_from_being_replaced_is_not_blamed() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid() or 65534
        (folder / "report.json").touch()
        (folder / "report.json").chmod(0o666)
        folder.chmod(0o555)
        try:
            os.seteuid(user)
            with pytest.raises(PermissionError) as refused:
                (folder / "report.json").unlink()
            failure = os_failure(refused.value)
        finally:
            os.seteuid(os.getuid())
            folder.chmod(0o755)
        assert failure is not None
        assert f"({folder.name} in its path belongs to user {os.getuid()} " in failure.message
        assert failure.message.endswith("with mode 0555)")


def test_an_error_of_another_kind_names_no_owner(tmp_path: Path) -> None:
    failure = os_failure(IsADirectoryError(21, "Is a directory", str(tmp_path)))
    assert failure is not None
    assert failure.message == f"{tmp_path} cannot be used: Is a directory"
