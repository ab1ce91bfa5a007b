"""One process at a time: a failed attempt reports the holder's process id."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import TemporaryFailure
from components.system.locks import lock_or_fail

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
