"""Folders that only this user can enter.

Promises: a private folder belongs to this user and has mode 0700, also one that was made earlier with another mode; what cannot be made
private is refused; a folder with other files in it is not changed.
"""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from components.errors import BadInput

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(folder: Path, *, ours: Collection[str], hint: str) -> None:
    """Make `folder` with mode 0700, or take the rights of other users away from it and from the entries in it that are named in `ours`.

    Raises:
        BadInput: with `hint`, if it cannot be written, belongs to another user, lies on a file system that keeps no modes, or is open to
            others and has entries, none of which is ours.
    """
    try:
        for parent in reversed([parent for parent in folder.absolute().parents if not parent.exists()]):
            parent.mkdir(mode=0o755, exist_ok=True)  # with umask 000 another user could put a folder of its own in this one's place
        folder.mkdir(mode=0o700, exist_ok=True)
        status, entries = folder.stat(), {entry.name: entry for entry in folder.iterdir()}
        if status.st_uid != os.geteuid():
            raise BadInput(f"{folder} belongs to another user (uid {status.st_uid})", hint=hint)
        if status.st_mode & _OTHERS:
            if status.st_mode & stat.S_ISVTX:
                raise BadInput(f"{folder} is shared with other users of this machine (it has the sticky bit)", hint=hint)
            if entries and not entries.keys() & set(ours):
                raise BadInput(f"{folder} is open to other users of this machine and has other files in it", hint=hint)
            folder.chmod(0o700)
            if folder.stat().st_mode & _OTHERS:
                raise BadInput(f"{folder} lies on a file system that does not keep other users out", hint=hint)
        for name in entries.keys() & set(ours):
            _close(entries[name])
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}", hint=hint) from error


def private_folder_in_shared(folder: Path, *, ours: Collection[str], hint: str) -> None:
    """Make `folder` private although other users can make entries beside it, as in `/tmp`, and so can have made it, or a link, before.

    Raises:
        BadInput: as `private_folder`, and if it is a link.
    """
    private_folder(folder, ours=ours, hint=hint)
    if folder.is_symlink():  # looked at last: no other user can replace what is this user's in a folder with the sticky bit
        raise BadInput(f"{folder} is a link, which another user can have made", hint=hint)


def _close(entry: Path) -> None:
    """Take the rights of other users away from a file or a folder of this user: a process may have its working directory below it."""
    status = entry.lstat()
    if (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)) and status.st_mode & _OTHERS and status.st_uid == os.geteuid():
        entry.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600; it is replaced at once, so no reader sees half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
