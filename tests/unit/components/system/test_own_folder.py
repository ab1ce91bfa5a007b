"""Scratch folders: one owner each, and nothing is left of the dead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from components.system.own_folder import own_folder, partial_name

HOLD = """
import sys
from pathlib import Path
from components.system.own_folder import own_folder
with own_folder(Path(sys.argv[1]), "same") as folder:
    (folder / "mine").write_text(str(folder))
    print(folder, flush=True)
    sys.stdin.read()
    assert (folder / "mine").read_text() == str(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]
"""


def hold(parent: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def folder_of(process: "subprocess.Popen[str]") -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_two_processes_that_ask_for_the_same_folder_get_different_ones(tmp_path: Path) -> None:
    processes = [hold(tmp_path), hold(tmp_path)]
    folders = [folder_of(process) for process in processes]
    assert folders[0] != folders[1]
    for process in processes:
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    killed, living = hold(tmp_path), hold(tmp_path)
    left, kept = folder_of(killed), folder_of(living)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert left.exists()
    with own_folder(tmp_path, "other") as folder:
        assert not left.exists()
        assert kept.exists()
        assert list(folder.iterdir()) == []
    living.communicate(timeout=30)
    assert living.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_partial_files_have_names_of_their_own(tmp_path: Path) -> None:
    names = {partial_name(tmp_path / "x.zip") for _ in range(10)}
    assert len(names) == 10
    assert {name.parent for name in names} == {tmp_path}
