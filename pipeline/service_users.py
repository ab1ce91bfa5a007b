"""Who uses the embedded servers of a home: each command that does holds a lock, which the kernel releases however it ends.

Promises: a user that was killed is not counted; what a user says about itself is one line.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.system.locks import create_locked


class ServiceUsers:
    """The commands that use the servers of one home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "users"

    @contextmanager
    def register(self, what: str | None) -> Iterator[None]:
        """Count this process as a user inside the block; `what` names what it does, like `run smoke-...`."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        mine = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with create_locked(mine, f"{what} (process {os.getpid()})" if what else f"process {os.getpid()}"):
            try:
                yield
            finally:
                mine.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return what the users say about themselves, and remove what dead ones have left."""
        names = []
        for path in sorted(self._folder.glob("[!.]*")):
            try:
                with path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except BlockingIOError:
                names.append(path.read_text().strip())
            except FileNotFoundError:
                continue
        return names
