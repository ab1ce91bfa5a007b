"""One embedded server as a process: recognised although ids are used again, and ended with its children.

Promises: a process is touched only if the mark in its environment is the one that it was started with; stopping asks first, then forces,
and waits for nobody but the processes themselves. What the servers are is in `services.py`.
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
    """A running server: how to reach it, and the mark in its environment by which its process is recognised."""

    url: str
    pid: int
    mark: str

    def process(self) -> psutil.Process | None:
        """Return the process if it is still the one that was started, and not another that got its id."""
        try:
            found = psutil.Process(self.pid)
            return found if self.environment().get(SERVER_MARK) == self.mark and _works(found) else None
        except (psutil.Error, OSError):
            return None

    def environment(self) -> dict[str, str]:
        """Return the environment of the process; only its own user can read it."""
        process = psutil.Process(self.pid)
        for _ in range(_EXEC_LOOKS):
            found: dict[str, str] = process.environ()
            if found:
                return found
            time.sleep(0.01)  # in the middle of exec the kernel shows an empty environment
        return {}

    def stop(self) -> None:
        """End the process and its children, first asking, then by force."""
        process = self.process()
        if process is None:
            return
        family = [process]
        with suppress(psutil.Error):
            family += process.children(recursive=True)
        for member in family:
            with suppress(psutil.Error):
                member.terminate()
        for member in _alive_after(family, _STOP_S):
            with suppress(psutil.Error):
                member.kill()
        _alive_after(family, _STOP_S)
        with suppress(ChildProcessError, OSError):
            os.waitpid(self.pid, os.WNOHANG)


def _alive_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until none of `processes` works any more, but no longer than so many seconds, and return those that do.

    One that has ended and waits for its parent to notice is not waited for: the parent may be another user of the servers that goes on.
    """
    deadline_s = time.monotonic() + seconds
    while alive := [process for process in processes if _works(process)]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return alive


def _works(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
