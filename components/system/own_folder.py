"""Scratch folders in a work folder, each of one process, and names for files that a process is still writing.

Promises: two processes never get the same folder, whatever names they ask for; the folder is removed when its block ends, and what a killed
process left is removed by the next one that asks for a folder of the same parent. For folders below /tmp, see `scratch.py`.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.system.locks import try_lock

_LOCK_SUFFIX = ".owner"


@contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """Provide an empty folder below `parent` for the block; `name` begins its name."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent)
    while True:
        folder = parent / f"{name}-{uuid.uuid4().hex[:12]}"
        owner = folder.with_name(folder.name + _LOCK_SUFFIX)
        with try_lock(owner) as held:
            if not held:  # another process took it for a leftover before it was locked
                continue
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _remove_leftovers(parent: Path) -> None:
    for owner in parent.glob(f"*{_LOCK_SUFFIX}"):
        with try_lock(owner) as is_left:
            if is_left:  # the file of the lock goes with the lock
                shutil.rmtree(owner.with_name(owner.name.removesuffix(_LOCK_SUFFIX)), ignore_errors=True)


def partial_name(path: Path) -> Path:
    """Return a name beside `path` for a file that is still being written; no other process has it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
