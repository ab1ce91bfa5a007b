"""The folder for local state, `.celebdit` by default: private to its user, and the locks in it.

Promises: whatever is in it can be entered by its user alone; a lock is never waited for if another user holds it, who can have opened its
file only while the folder was open to others.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from components.command_settings import CommandSettings
from components.errors import BadInput
from components.system.locks import lock_file
from components.system.private import private_folder

DATABASE = "mlflow.db"
LOCK, USERS, STATE = "services.lock", "services.users", "services.json"
UI_PORT = "mlflow-port"
_FOLDERS = ("s3", "logs", "users", "runs", "work", "work-containers", "demo", "averages", "sweeps")
_OURS = (DATABASE, LOCK, USERS, STATE, UI_PORT, *_FOLDERS)


def default_home() -> Path:
    """Return the folder for local state: CELEBDIT_HOME, or `.celebdit` in the current folder."""
    return CommandSettings.from_environment().home


def make_home(home: Path) -> None:
    """Make the folder, or close an older one to other users.

    Raises:
        BadInput: if it cannot be written, cannot be made private, or has a name that is no UTF-8, in which reports are written.
    """
    try:
        str(home.absolute()).encode()
    except UnicodeEncodeError:
        hint = "choose another folder with --home or CELEBDIT_HOME, or a UTF-8 locale"
        raise BadInput(f"{home.absolute()} cannot be read as UTF-8", hint=hint) from None
    private_folder(home, ours=_OURS, hint="choose another folder with --home or CELEBDIT_HOME, or take its rights away: chmod go-rwx")
    try:
        ignore = home / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as error:
        raise BadInput(f"{home} cannot be written: {error.strerror}", hint="choose another folder with --home or CELEBDIT_HOME") from error


@contextmanager
def hold_lock(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[IO[str]]:
    """Hold a lock on the file at `path` inside the block, exclusive or (`LOCK_SH`) shared; yields the open file."""
    while True:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            try:
                lock_file(file, kind | fcntl.LOCK_NB, path)
            except BlockingIOError:
                if _is_held_by_a_stranger(file):
                    path.unlink(missing_ok=True)
                    continue
                lock_file(file, kind, path)
            if not _is_at(path, file):
                continue  # it was replaced meanwhile
            yield file
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _is_held_by_a_stranger(file: IO[str]) -> bool:
    """Return whether a process of another user holds a lock on `file`, or one that has ended and left the file open in another."""
    inode = str(os.fstat(file.fileno()).st_ino)
    try:
        locks = [line.replace("->", "").split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False  # not Linux
    holders = [int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].rpartition(":")[2] == inode]
    return any(_is_a_stranger(pid) for pid in holders if pid > 0)


def _is_a_stranger(pid: int) -> bool:
    import psutil  # noqa: PLC0415 - takes longer than all that most commands ask of the folder

    try:
        return psutil.Process(pid).uids().effective != os.geteuid()
    except psutil.Error:
        return True
