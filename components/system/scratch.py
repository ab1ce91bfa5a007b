"""A folder in the system's temporary folder, which other users share, for what needs a short path: sockets, TMPDIR of a run.

Promises: the folder is removed at the end of the block; what a killed process left is removed by the next one that uses this module, and
recognised by the lock inside it, which the kernel releases. Only folders of this user are touched. For scratch folders in a work folder,
which is this user's alone, see `own_folder.py`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.system.locks import lock, try_lock

_PREFIX = "celebdit-"
_LOCK = ".lock"
_LOCKED_WITHIN_S = 60.0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder with a short path (sockets may lie in it) for the block, and remove it with all that was put into it."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with lock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and not folder.is_symlink() and _has_old_lock(folder):
                with try_lock(folder / _LOCK) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(folder, ignore_errors=True)


def _has_old_lock(folder: Path) -> bool:
    """Return whether `folder` has a lock that is not of this moment; a new folder is locked shortly after it is made."""
    path = folder / _LOCK
    return path.exists() and time.time() - path.stat().st_mtime >= _LOCKED_WITHIN_S
