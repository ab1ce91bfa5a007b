"""Processes of this machine by what the kernel knows of them: whether one is alive, and when it started.

Promises: a process that got the id of another one after it is never taken for that one.
"""

from contextlib import suppress
from pathlib import Path

import psutil


def kill_all(processes: list[psutil.Process]) -> None:
    """Send SIGKILL to each of `processes` that is still the process it was."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def is_alive(process: psutil.Process) -> bool:
    """Return whether `process` runs; one that has ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did, or None where the system does not tell.

    Unlike a time of day it does not change when the clock is set.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
