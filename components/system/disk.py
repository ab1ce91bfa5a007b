"""Full disks: detected, reported at once with the space that is needed, and distinguished from lost connections.

Promises: a full disk is always a temporary failure that names the folder, its free space and the next action; nothing here waits for room.
A disk is also full when it may hold no more files (inodes), whatever space is free.
"""

import errno
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import BadInput, CelebditError, TemporaryFailure

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LOCAL = FULL | {errno.EROFS, errno.EIO, errno.EISDIR, errno.ENOTDIR}
"""Errors of files, which do not pass while one waits for a server. An error of `write` has no file name, like one of a connection."""
RUN_BYTES = 2**30
"""What a run needs at least: a packed dataset, checkpoints, a journal."""
RUN_FILES = 256
"""How many files and folders a run makes at least; the smoke preset made 95."""
_FEW_FILES = 4
"""A disk with room for fewer files counts as full: what failed to make one may have removed others since."""
_RAISE_LIMIT = "raise the limit of this shell: ulimit -f unlimited"
_OTHER_WORK_DIR = "set CELEBDIT_WORK_DIR to a folder with more"
_AGAIN = "then run it again: finished work is kept"


class DiskFull(TemporaryFailure):
    """A disk of this machine has no room for what is to be written."""

    @classmethod
    def of(cls, folder: Path, what: str, *, needed_bytes: int | None = None, advice: str = _OTHER_WORK_DIR) -> "DiskFull":
        """Return the error for `what`, which does not fit into `folder`; `advice` says how another folder is named."""
        limit = _file_limit_bytes()
        if limit is not None and limit < free_bytes(folder):
            return cls(f"{what} cannot be written to {folder}: {_limit(limit)}", hint=_RAISE_LIMIT)
        if has_no_files(folder) and (needed_bytes is None or free_bytes(folder) >= needed_bytes):
            return cls.of_files(folder, what, advice=advice)
        needed = "" if needed_bytes is None else f" {what} needs {needed_bytes / 1e6:.1f} MB,"
        subject = f"the disk of {folder} is full" if needed else f"the disk of {folder} is full, {what} cannot be written"
        return cls(f"{subject}:{needed} {free_bytes(folder) / 1e6:.1f} MB are free", hint=f"free some, or {advice}; {_AGAIN}")

    @classmethod
    def of_files(cls, folder: Path, what: str, *, advice: str = _OTHER_WORK_DIR) -> "DiskFull":
        """Return the error for `what`, which has more files than the disk of `folder` may still hold."""
        free = f"{free_files(folder) or 0} inodes and {free_bytes(folder) / 1e6:.1f} MB are free"
        hint = f"delete files there (df -i shows how many there are), or {advice}; {_AGAIN}"
        return cls(f"the disk of {folder} is full, it takes too few files for {what}: {free}", hint=hint)


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Return whether `error` says that a disk of this machine is full; SQLite does not say why it cannot make a file in `folder`."""
    if isinstance(error, sqlite3.OperationalError):
        cannot_open = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN  # errors of Python's own module have none
        return "disk is full" in str(error) or (cannot_open and folder is not None and has_no_files(folder))
    return isinstance(error, OSError) and error.errno in FULL


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to the disk of `folder`, or of its nearest parent that exists."""
    for existing in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(existing).free
    return 0


def free_files(folder: Path) -> int | None:
    """Return how many files this user may still make on the disk of `folder`; None if its file system has no such limit."""
    for existing in (folder, *folder.absolute().parents):
        with suppress(OSError):
            disk = os.statvfs(existing)
            return disk.f_favail if disk.f_files else None
    return None


def has_no_files(folder: Path, *, needed: int = _FEW_FILES) -> bool:
    """Return whether the disk of `folder` may hold fewer than `needed` more files."""
    free = free_files(folder)
    return free is not None and free < needed


def _file_limit_bytes() -> int | None:
    """Return the size that a file of this process may have, None for any."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _limit(limit_bytes: int) -> str:
    return f"files may have at most {limit_bytes / 1e6:.1f} MB here"


def require_room(folder: Path, what: str, needed_bytes: int, *, needed_files: int = _FEW_FILES) -> None:
    """Check that `what` fits into `folder` before it is begun.

    Raises:
        DiskFull: if it does not.
    """
    if free_bytes(folder) < needed_bytes:
        raise DiskFull.of(folder, what, needed_bytes=needed_bytes)
    if has_no_files(folder, needed=needed_files):
        raise DiskFull.of_files(folder, what)


def require_writable(folder: Path, *, advice: str, room_bytes: int, room_files: int = _FEW_FILES) -> None:
    """Make `folder` if needed, for this user alone, and check that files can be made in it.

    Raises:
        BadInput: if it cannot be written, with `advice`, or no file may have `room_bytes`. DiskFull: if they are not free there,
            or `room_files` more files cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if not is_full(error):
            raise BadInput(f"{folder} cannot be written: {error.strerror}", hint=advice) from error
    if (limit := _file_limit_bytes()) is not None and limit < room_bytes:
        raise BadInput(f"{folder} needs files of {room_bytes / 1e6:.1f} MB, and {_limit(limit)}", hint=_RAISE_LIMIT)
    if free_bytes(folder) < room_bytes:
        raise DiskFull.of(folder, "what is kept there", needed_bytes=room_bytes, advice=advice)
    if has_no_files(folder, needed=room_files):
        raise DiskFull.of_files(folder, "what is kept there", advice=advice)


@contextmanager
def full_disk_is_named(*folders: Path, what: str = "a run", needed_bytes: int | None = RUN_BYTES) -> Iterator[None]:
    """Turn a full disk inside the block into an error that names the fullest of `folders` and the folder for temporary files.

    Raises:
        DiskFull: if the block found a disk full.
    """
    try:
        yield
    except CelebditError:
        raise
    except Exception as error:
        if not is_full(error, folders[0] if folders else None):
            raise
        written = getattr(error, "filename", None)
        places = [Path(written).parent] if isinstance(written, str) else [*folders, Path(tempfile.gettempdir())]
        fullest = min(places, key=lambda place: (not has_no_files(place), free_bytes(place)))
        raise DiskFull.of(fullest, what, needed_bytes=needed_bytes) from error
