"""Temporary folders that do not outlive their process, even if it is killed.

Promises: the folder is removed at the end of the block; what a killed process left is removed by the next one that uses this module, and
recognised by its lock, which the kernel releases. Only folders of this user in the system's temporary folder are touched.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "celebdit-"
_LOCK = ".lock"
_LOCKED_WITHIN_S = 60.0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder with a short path (sockets may lie in it) for the block, and remove it with all that was put into it."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.getuid() and not folder.is_symlink() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Return whether nobody holds the lock of `folder`, which a new one has within a moment."""
    lock = folder / _LOCK
    if not lock.exists():
        return False
    if time.time() - lock.stat().st_mtime < _LOCKED_WITHIN_S:
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
