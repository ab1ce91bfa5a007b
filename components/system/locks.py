"""Exclusive file locks between processes of one machine.

Promises: the kernel holds the lock, so it is released when its holder ends, however it ends; a failed attempt reports the holder's
process id; a lock that is given back leaves no file. Locks do not work across machines.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from components.errors import BadInput, TemporaryFailure

_POLL_S = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What `flock` fails with on a network folder that is mounted without locks."""


def lock_file(file: IO[str] | int, kind: int, path: Path) -> None:
    """Lock an open file, which is at `path`, as `flock` does.

    Raises:
        BlockingIOError: if another process holds it and `kind` does not wait. BadInput: if its file system has no locks.
    """
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise BadInput(
            f"{path.parent} lies on a file system without locks: {error.strerror}",
            hint="choose a folder on another one with --home, CELEBDIT_HOME or CELEBDIT_WORK_DIR, or mount it with locks",
        ) from error


@contextmanager
def lock(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, which is created; `on_wait` is called once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _attempt(path)
    if file is None:
        on_wait()
    while file is None:
        file = _attempt(path, wait=True)
    with _hold(file, path):
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock for the block if it is free; yields whether it is held."""
    file = _attempt(path)
    if file is None:
        yield False
        return
    with _hold(file, path):
        yield True


@contextmanager
def lock_or_fail(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock for the block, waiting up to `wait_s` seconds for its holder.

    Raises:
        TemporaryFailure: if it stays held; names `what` is under way, and in which process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + wait_s
    while (file := _attempt(path)) is None:
        if time.monotonic() >= deadline_s:
            raise TemporaryFailure(
                f"{what} is under way in process {_holder(path)}", hint=f"wait for it to end (its lock: {path}), then run this again"
            )
        time.sleep(_POLL_S)
    with _hold(file, path):
        yield


def create_locked(path: Path, content: str) -> IO[str]:
    """Create the file at `path` with `content` and return it, locked until it is closed; the path never names it without its lock."""
    unseen = path.with_name(f".{path.name}.{os.getpid()}")
    file = unseen.open("w")
    try:
        lock_file(file, fcntl.LOCK_EX, path)
        file.write(content)
        file.flush()
        unseen.rename(path)
    except BaseException:
        unseen.unlink(missing_ok=True)
        file.close()
        raise
    return file


def _attempt(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Return the locked file at `path`, or None if another process holds it, or held it and has removed the file meanwhile."""
    file = path.open("a+")
    try:
        lock_file(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), path)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def _hold(file: IO[str], path: Path) -> Iterator[None]:
    """Write this process's id into the locked file for the block; then remove the file, while it is still locked."""
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip() or "unknown"
    return "unknown"
