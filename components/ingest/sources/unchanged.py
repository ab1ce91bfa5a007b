"""Whether a file is still the one that was fingerprinted.

Promises: a file that was replaced, written to or truncated since it was hashed is noticed, whatever its new size and times: the change time
(ctime) that is compared cannot be set. Writes through a memory map that was made before may be missed.
"""

import hashlib
import os
import time
from pathlib import Path

from components.errors import DataRefused

State = tuple[int, int, int, int, int]
_TICK_NS = 20_000_000
"""More than the resolution of a file system's times: a file that changed so recently may change again without a new time."""


def state_of(status: os.stat_result) -> State:
    """Return what changes when the file with this status is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def source_changed_error(label: str, what: str) -> DataRefused:
    """Return the error for a source that changed while it was ingested."""
    return DataRefused(
        f"data.source {label} changed while it was ingested: {what}", hint="make sure that no other process writes to it, and run it again"
    )


class FingerprintedFile:
    """A local file, as it was when it was opened as a source and as it was when it was hashed."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._opened = state_of(path.stat())
        self.state = self._opened

    def sha256(self) -> str:
        """Return the sha256 of the file as it is now.

        Raises:
            DataRefused: if it is written to meanwhile.
        """
        with self._path.open("rb") as file:
            if 0 <= time.time_ns() - os.fstat(file.fileno()).st_ctime_ns < _TICK_NS:
                time.sleep(_TICK_NS / 1e9)
            self.state = state_of(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if state_of(os.fstat(file.fileno())) != self.state:
                raise source_changed_error(self._label, f"{self._path} was written to while it was hashed")
        return digest

    def require_unchanged(self) -> None:
        """Raise DataRefused if the file is not the one that was opened, or not the one that was hashed."""
        try:
            now = state_of(self._path.stat())
        except OSError as error:
            raise source_changed_error(self._label, f"{self._path} cannot be read any more ({error.strerror})") from error
        if not now == self.state == self._opened:
            raise source_changed_error(self._label, f"{self._path} is not the file that was opened and hashed")
