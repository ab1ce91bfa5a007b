"""Find and stop the process of an embedded server, even if its process id was reused.

Promises: a process is touched only if the mark in its environment is the one that it was started with; stopping sends SIGTERM to the
process and its children, and SIGKILL after a grace period. The servers are in `services.py`.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from components.environment import SERVER_MARK

_STOP_S = 15.0
_EXEC_LOOKS = 50


@dataclass(frozen=True)
class Server:
    """A running server: its URL, and the mark in its environment that identifies its process."""

    url: str
    pid: int
    mark: str

    def process(self) -> psutil.Process | None:
        """Return the process, or None if it has ended or its id belongs to another process now."""
        try:
            process = psutil.Process(self.pid)
            return process if self.environment().get(SERVER_MARK) == self.mark and _is_alive(process) else None
        except (psutil.Error, OSError):
            return None

    def environment(self) -> dict[str, str]:
        """Return the environment of the process; only its own user can read it."""
        process = psutil.Process(self.pid)
        for _ in range(_EXEC_LOOKS):
            environment: dict[str, str] = process.environ()
            if environment:
                return environment
            time.sleep(0.01)  # during exec the kernel shows an empty environment
        return {}

    def stop(self) -> None:
        """End the process and its children: SIGTERM, then SIGKILL."""
        process = self.process()
        if process is None:
            return
        family = [process]
        with suppress(psutil.Error):
            family += process.children(recursive=True)
        for member in family:
            with suppress(psutil.Error):
                member.terminate()
        for member in _still_alive(family, _STOP_S):
            with suppress(psutil.Error):
                member.kill()
        _still_alive(family, _STOP_S)
        with suppress(ChildProcessError, OSError):
            os.waitpid(self.pid, os.WNOHANG)


def _still_alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all of `processes` have ended, at most so many seconds, and return those that are still alive.

    A zombie counts as ended: its parent may be another command that uses the servers and continues.
    """
    deadline_s = time.monotonic() + seconds
    while alive := [process for process in processes if _is_alive(process)]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
