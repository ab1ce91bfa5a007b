"""One process at a time: a failed attempt reports the holder's process id."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from components.errors import BadInput, TemporaryFailure
from components.system import lifeline
from components.system.locks import create_locked, lock, lock_or_fail, try_lock
from pipeline.home import hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from components.system.locks import lock_or_fail
with lock_or_fail(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_cannot_lock_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TemporaryFailure, match=f"training is under way in process {holder.pid}"), lock_or_fail(path, "training"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        with lock_or_fail(path, "training", wait_s=10):
            assert path.read_text() == str(os.getpid())
    finally:
        holder.kill()
        holder.wait()


def test_it_can_be_taken_again_after_it_was_released(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_or_fail(tmp_path / "lock", "x"):
            pass


def test_a_lock_that_was_given_back_leaves_no_file(tmp_path: Path) -> None:
    with lock(tmp_path / "a"), try_lock(tmp_path / "b") as free, lock_or_fail(tmp_path / "c", "x"):
        assert free
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
        with try_lock(tmp_path / "a") as free_again:
            assert not free_again
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_holds_a_lock_whose_file_comes_and_goes(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from components.system.locks import lock\n"
        "path, inside = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "for _ in range(300):\n"
        "    with lock(path):\n"
        "        os.close(os.open(inside, os.O_CREAT | os.O_EXCL)); inside.unlink()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock"), str(tmp_path / "inside")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert not list(tmp_path.iterdir())


LOCKS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "lock": lock,
    "try": try_lock,
    "fail": lambda path: lock_or_fail(path, "training"),
    "create": lambda path: create_locked(path, "text"),
    "lifeline": lifeline.hold,
    "home": hold_lock,
}


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer on such a file system, which no folder of a test machine gives."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(BadInput, match=f"{tmp_path} lies on a file system without locks: {os.strerror(number)}"),
        LOCKS[kind](tmp_path / "l"),
    ):
        pass
