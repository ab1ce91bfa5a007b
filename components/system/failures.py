"""Distinguish errors of the operating system, and of a library that cannot read an answer, from errors of this code.

Promises: an internal error is never explained away; of a file that may not be used, the owner and the mode are looked at. `os_failure` is
for the places where a command or a step ends, `was_raised_in` for the two places where the answers of servers are read
(`storage/faults.py`, `tracking/mlflow_errors.py`).
"""

import errno
import os
import stat
from pathlib import Path

from components.errors import BadInput, CelebditError, TemporaryFailure
from components.system.disk import FULL

_NO_ROOM = FULL - {errno.EFBIG}  # a limit on the size of a file is no lack of room
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ELOOP,
        errno.EINVAL,
        errno.ENXIO,
        errno.ENODEV,
    }
)


def os_failure(error: BaseException) -> CelebditError | None:
    """Return the error for people that stands for `error`, or None if that is neither the operating system's nor a lack of memory."""
    if isinstance(error, MemoryError):
        return TemporaryFailure("this process has no memory left", hint="end other programs, or use a machine with more memory")
    if not isinstance(error, OSError) or (error.errno is None and not isinstance(error, ConnectionError | TimeoutError)):
        return None
    # Names of any length and with any characters reach this; the end of a path says most.
    path = str(error.filename) if error.filename is not None else None
    subject = "a file or the output" if path is None else path if len(path) <= 200 else f"...{path[-200:]}"
    reason = error.strerror or type(error).__name__
    if error.errno in _NO_ROOM:
        return TemporaryFailure(f"{subject} cannot be written: {reason}", hint="make room there, then run the same command again")
    if path is not None and error.errno in _REFUSED:
        owner = _owner_text(path) if error.errno == errno.EACCES else ""
        return BadInput(f"{subject} cannot be used: {reason}{owner}", hint="choose another path, or change who may use this one")
    return TemporaryFailure(f"{subject} cannot be used: {reason}", hint="run the same command again")


def _owner_text(path: str) -> str:
    """Return in brackets who owns what keeps this user from `path`, which is the last part of it that can be looked at, and its mode."""
    absolute = Path(path).absolute()
    for part in (absolute, *absolute.parents):
        try:
            status = part.stat()
        except OSError:
            continue
        if part == absolute and _may(part, os.R_OK | os.W_OK) and not _may(part.parent, os.W_OK | os.X_OK):
            continue  # it may be read and written, and its folder keeps it from being replaced or deleted
        whose = "it" if part == absolute else f"{part.name or part} in its path"
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return f" ({whose} belongs to user {status.st_uid} and group {status.st_gid}, with mode {mode})"
    return ""


def _may(path: Path, access: int) -> bool:
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def was_raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether `error` passed through the code of one of `packages`, rather than only through ours."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] in packages:
            return True
        trace = trace.tb_next
    return False
