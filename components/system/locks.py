"""Exclusive file locks between processes of one machine.

Promises: the kernel holds the lock, so it is released when its holder ends, however it ends; a failed attempt reports the holder's
process id. Locks do not work across machines.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import TemporaryFailure

_POLL_S = 0.1


@contextmanager
def lock(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, which is created; `on_wait` is called once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock for the block if it is free; yields whether it is held."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def lock_or_fail(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock for the block, waiting up to `wait_s` seconds for its holder.

    Raises:
        TemporaryFailure: if it stays held; names `what` is under way, and in which process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + wait_s
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise TemporaryFailure(
                        f"{what} is under way in process {holder}", hint=f"wait for it to end (its lock: {path}), then run this again"
                    ) from None
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
