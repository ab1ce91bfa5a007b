"""The lifeline of a run: a file that the guardian of a run holds locked, and at whose release every process of the run ends.

Promises: the kernel releases the lock when its holder ends, however it ends; a process that watches the file needs no inherited descriptor
and no common ancestor, so it may lie behind a shell, behind a library that closes descriptors, or in a container that sees the file.
The processes of a run are recognised by the file's path in their environment. The guardian is in `guardian.py`.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from components.environment import LIFELINE
from components.system.locks import lock_file
from components.system.process_table import is_alive, kill_all

GRACE_S = 3.0
"""How long a process may save its work after its run has lost its command."""
_END_S = 10.0
_POLL_S = 0.05


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lifeline at `path`, which is created, for the block."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(handle, 0o644)  # a step in a container has another user id, whatever the umask
        lock_file(handle, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(handle)


def watch(path: Path, *, grace_s: float = GRACE_S) -> bool:
    """End this process when the lifeline at `path` is released: SIGTERM, and for good after `grace_s` seconds.

    Returns whether it is watched: without the file there is nothing to wait for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    threading.Thread(target=_end_after, args=(handle, grace_s), name="lifeline", daemon=True).start()
    return True


def _end_after(handle: int, grace_s: float) -> None:
    # A signal for this process must wake its main thread, which may be waiting for a child.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    fcntl.flock(handle, fcntl.LOCK_SH)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(128 + signal.SIGTERM)  # the first process of a container cannot kill itself


def processes_of(path: Path) -> list[psutil.Process]:
    """Return the living processes of this user whose lifeline is `path`, and what they started, without this process."""
    processes: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real == os.getuid() and process.environ().get(LIFELINE) == str(path):
                processes |= {member.pid: member for member in (process, *process.children(recursive=True))}
    return [process for pid, process in processes.items() if pid != os.getpid() and is_alive(process)]


def end_processes_of(path: Path) -> int:
    """Kill the processes whose lifeline is `path`, wait until they are gone, and return how many there were.

    A process is known by its id and its start time: one that got the id of another after it is not touched.
    """
    ended: set[psutil.Process] = set()
    deadline_s = time.monotonic() + _END_S
    while (alive := processes_of(path)) and time.monotonic() < deadline_s:
        ended |= set(alive)
        kill_all(alive)
        time.sleep(_POLL_S)
    return len(ended)
