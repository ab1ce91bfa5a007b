"""Images in a tar archive, compressed or not, read once from front to back.

Promises: an entry is never a path and never on disk; the archive is read by a process of its own (`tar_reader.py`) with limited memory and
without credentials, which is ended if it makes no progress; a truncated archive is refused completely.
"""

import io
import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from components.errors import DataRefused
from components.ingest.candidates import Candidate, too_many_bytes, too_many_entries
from components.ingest.limits import Budget
from components.ingest.verdicts import Rejected
from components.ingest.wire import read_blobs, read_head
from components.storage import file_sha256
from components.system.child_environment import child_environment
from components.system.python_process import python_command

_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_MEMORY_BYTES = 256 * 2**20
_COPIES = 3
"""How often the bytes of one image may be in the reader's memory."""
_PATIENCE_S = 60.0
_PIPE_BYTES = 2**20
_FIRST_ENTRY = Budget(max_image_bytes=0, max_total_bytes=2**30, max_entries=1, max_ratio=1e6)


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, by its name or by its first header."""
    if path.name.lower().endswith(_SUFFIXES):
        return True
    with _reader(path, _FIRST_ENTRY) as frames:
        try:
            head = read_head(frames)
        except (OSError, ValueError):
            return False
    return head is not None and head.get("outcome", "end") == "end"


class TarSource:
    """The entries of a tar archive, compressed or not, read once from front to back."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label

    def fingerprint(self) -> str:
        return file_sha256(self._path)

    def count(self) -> int | None:
        return None

    def provenance(self) -> str:
        return self._label

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        with _reader(self._path, budget) as frames:
            try:
                while (head := read_head(frames)) is not None and "outcome" not in head:
                    (data,) = read_blobs(frames, head)
                    if head["name"] is not None:
                        refused = head["refused"]
                        yield Candidate(head["name"], data, None if refused is None else Rejected(*refused))
            except TimeoutError as error:
                raise self._corrupt(f"nothing could be read of it for {_PATIENCE_S:.0f} s") from error
            except (OSError, EOFError, ValueError) as error:
                raise self._corrupt("the process that reads it ended") from error
        if head is None:
            raise self._corrupt("the process that reads it ended")
        self._check(head, budget)

    def _check(self, last: dict[str, Any], budget: Budget) -> None:
        """Raise what the last frame says, unless it is the archive's end."""
        outcome = last["outcome"]
        if outcome == "entries":
            raise too_many_entries(self._label, budget)
        if outcome == "bytes":
            raise too_many_bytes(self._label, budget)
        if outcome == "ratio":
            raise DataRefused(
                f"data.source {self._label} unpacks to more than {budget.max_ratio:g} times its size",
                hint="no archive of photographs compresses so well; raise data.max_ratio if this one does",
            )
        if outcome == "memory":
            raise self._corrupt(f"reading it takes more than {_memory_bytes(budget) / 2**20:.0f} MiB of memory")
        if outcome != "end":
            raise self._corrupt(last["text"])

    def _corrupt(self, reason: str) -> DataRefused:
        return DataRefused(f"data.source {self._label} is corrupt: {reason}", hint="fetch or pack it again")


def _memory_bytes(budget: Budget) -> int:
    return _MEMORY_BYTES + _COPIES * budget.max_image_bytes


@contextmanager
def _reader(path: Path, budget: Budget) -> Iterator[IO[bytes]]:
    """Yield the frames of a process that reads the archive at `path`, and end the process after the block."""
    with path.open("rb") as archive:
        number = archive.fileno()
        command = python_command(
            "components.ingest.sources.tar_reader", str(number), json.dumps(asdict(budget)), str(_memory_bytes(budget))
        )
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment("decoder"),
            cwd="/",
            start_new_session=True,
            pass_fds=[number],
            pipesize=_PIPE_BYTES,
        )
        assert process.stdout is not None
        try:
            with io.BufferedReader(_Patient(process.stdout.fileno()), _PIPE_BYTES) as frames:
                yield frames
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class _Patient(io.RawIOBase):
    """Reads a pipe, and raises TimeoutError where nothing comes for too long."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not select.select([self._pipe], [], [], _PATIENCE_S)[0]:
            raise TimeoutError
        return os.readv(self._pipe, [buffer])
