"""The guardian of a run: the process between a command and all that the command starts. `python -m components.system.guardian LIFELINE ...`

Promises: no process below it outlives it or the command, however the command ends: SIGKILL, a closed terminal, the kernel that needs
memory. Three ties, because each alone has a gap:

- its standard input is a pipe whose other end only the command holds: it closes with the command, whatever kills it;
- it is the subreaper of everything below (Linux), so that a process whose parent was killed, or which began a session of its own, is still
  found and ended; its own session keeps it from signals to the command's terminal, process group or session;
- it holds the lifeline (`lifeline.py`), at whose release every process of the run ends by itself if the guardian is killed too.

A death signal (PR_SET_PDEATHSIG) ties a process to the *thread* that started it, is lost when a set-user-id program is executed, and does
not pass through the shell that kfp's local runner puts between itself and a step. It is set where we start a child, and nothing rests on it
alone.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from components.system.lifeline import GRACE_S, hold
from components.system.process import spawn
from components.system.process_table import is_alive, kill_all

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_KILL_S = 10.0
STOP_S = 40.0
"""How long the processes may take to save their work after the command asked them to stop."""
_REST_S = 25.0
"""How long processes may take that are left when the first one has ended."""


class Guardian:
    """Runs one command, and ends everything below this process before it returns."""

    def __init__(self, command: list[str], owner: int) -> None:
        """`owner` is the open file that ends with the process that this one works for."""
        self._owner = owner
        self._stop_requested = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._request_stop)
        _become_subreaper()
        self._child = spawn(command, new_group=True)

    def run(self) -> int:
        """Wait for the command to end, to be stopped, or to lose its owner; return its exit status."""
        self._wait(lambda: self._child.poll() is not None or self._stop_requested)
        if not self._owner_is_gone() and self._child.poll() is None:
            _signal_group(self._child.pid, signal.SIGTERM)
            self._wait(lambda: self._child.poll() is not None and not _group_is_alive(self._child.pid), timeout_s=STOP_S)
        if not self._owner_is_gone():
            self._wait(lambda: not _living_below(), timeout_s=GRACE_S)
        self._end_rest()
        status = self._child.wait()
        return status if status >= 0 else 128 - status

    def _end_rest(self) -> None:
        """End what is left: SIGTERM, then SIGKILL, sooner if the owner is gone."""
        for process in _living_below():
            with suppress(psutil.Error):
                process.terminate()
        self._wait(lambda: not _living_below(), timeout_s=_REST_S)
        if self._owner_is_gone():
            grace_ends_s = time.monotonic() + GRACE_S
            while _living_below() and time.monotonic() < grace_ends_s:
                time.sleep(_POLL_S)
                self._reap()
        deadline_s = time.monotonic() + _KILL_S
        while (left := _living_below()) and time.monotonic() < deadline_s:
            kill_all(left)
            time.sleep(_POLL_S)
            self._reap()

    def _wait(self, is_over: Callable[[], bool], *, timeout_s: float = float("inf")) -> None:
        """Wait until `is_over`, at most so many seconds, or until the owner is gone."""
        deadline_s = time.monotonic() + timeout_s
        while not is_over() and time.monotonic() < deadline_s and not self._owner_is_gone(wait_s=_POLL_S):
            self._reap()

    def _owner_is_gone(self, *, wait_s: float = 0.0) -> bool:
        readable, _, _ = select.select([self._owner], [], [], wait_s)
        return bool(readable) and not os.read(self._owner, 1)

    def _reap(self) -> None:
        """Collect the status of orphans that became children of this process."""
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None and ended.si_pid != self._child.pid:
                os.waitpid(ended.si_pid, os.WNOHANG)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True


def _living_below() -> list[psutil.Process]:
    """Return the living processes below this one."""
    for _ in range(2):  # one look misses a process whose parent ends while it is taken
        if alive := [process for process in psutil.Process().children(recursive=True) if is_alive(process)]:
            return alive
    return []


def _group_is_alive(group: int) -> bool:
    for process in _living_below():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                return True
    return False


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _become_subreaper() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    """Run the command of the arguments under the lifeline that the first one names; standard input tells whether the owner lives."""
    with hold(Path(sys.argv[1])):
        status = Guardian(sys.argv[2:], sys.stdin.fileno()).run()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
