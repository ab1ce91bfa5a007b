"""Read the entries of an untrusted file in a process of its own, with limited memory and without credentials.

Promises: a process that makes no progress is ended; how it ended is an error of the source, except at the end of the file. The process is
`tar_reader.py` or `parquet_reader.py`; it writes frames (`../wire.py`), of which the last one says how it ended.
"""

import io
import json
import os
import select
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from components.errors import DataRefused, TemporaryFailure
from components.ingest.candidates import Candidate, too_many_bytes, too_many_entries
from components.ingest.limits import Budget
from components.ingest.sources.streamed import StreamedSource
from components.ingest.sources.unchanged import FingerprintedFile
from components.ingest.verdicts import Rejected
from components.ingest.wire import read_blobs, read_head
from components.system.child_environment import child_environment
from components.system.process import signal_from_outside
from components.system.python_process import python_command

Outcome = Literal["end", "corrupt", "entries", "bytes", "ratio", "memory", "unusable"]
_PIPE_BYTES = 2**20
_END_S = 5.0
"""How long a process may take to end after its last frame."""


@dataclass(frozen=True)
class Reader:
    """The module that reads a file, the memory that it may take, and how long it may say nothing."""

    module: str
    memory_bytes: int
    patience_s: float


class EntrySource(StreamedSource, ABC):
    """The entries of one file, read once from front to back."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(label)
        self._path = path
        self._file = FingerprintedFile(path, label)

    @abstractmethod
    def reader(self, budget: Budget) -> Reader:
        """Return what reads this kind of file."""

    def fingerprint(self) -> str:
        return self._file.sha256()

    def require_unchanged(self) -> None:
        self._file.require_unchanged()

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        reader = self.reader(budget)
        with open_reader(self._path, budget, reader) as (frames, process):
            try:
                while (head := read_head(frames)) is not None and "outcome" not in head:
                    (data,) = read_blobs(frames, head)
                    if head["name"] is not None:
                        refused = head["refused"]
                        yield Candidate(head["name"], data, None if refused is None else Rejected(*refused))
            except TimeoutError as error:
                raise self._corrupt(f"nothing could be read of it for {reader.patience_s:.0f} s") from error
            except (OSError, EOFError, ValueError) as error:
                check_not_killed(process, self._label)
                raise self._corrupt("the process that reads it ended") from error
            if head is None:
                check_not_killed(process, self._label)
                raise self._corrupt("the process that reads it ended")
        self._check(head, budget)

    def _check(self, last: dict[str, Any], budget: Budget) -> None:
        """Raise what the last frame says, unless it is the end of the file."""
        outcome: Outcome = last["outcome"]
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
            raise self._corrupt(f"reading it takes more than {self.reader(budget).memory_bytes / 2**20:.0f} MiB of memory")
        if outcome == "unusable":
            raise DataRefused(f"data.source {self._label} {last['text']}", hint="write it again with one column of the images' bytes")
        if outcome != "end":
            raise self._corrupt(last["text"])

    def _corrupt(self, reason: str) -> DataRefused:
        return DataRefused(f"data.source {self._label} is corrupt: {reason}", hint="fetch or pack it again")


@contextmanager
def open_reader(path: Path, budget: Budget, reader: Reader) -> "Iterator[tuple[IO[bytes], subprocess.Popen[bytes]]]":
    """Yield the frames of a process that reads the file at `path`, and the process, which is ended after the block."""
    with path.open("rb") as file:
        number = file.fileno()
        process = subprocess.Popen(
            python_command(reader.module, str(number), json.dumps(asdict(budget)), str(reader.memory_bytes)),
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
            with io.BufferedReader(_Patient(process.stdout.fileno(), reader.patience_s), _PIPE_BYTES) as frames:
                yield frames, process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def check_not_killed(process: "subprocess.Popen[bytes]", label: str) -> None:
    """Check that the process that read `label` and whose frames ended was not killed from outside, which says nothing about the file.

    Raises:
        TemporaryFailure: naming the signal.
    """
    if name := signal_from_outside(process, wait_s=_END_S):
        raise TemporaryFailure(
            f"the process that read data.source {label} was killed by {name}",
            hint="run it again; the system kills processes when memory runs out",
        )


class _Patient(io.RawIOBase):
    """Reads a pipe, and raises TimeoutError where nothing comes for too long."""

    def __init__(self, pipe: int, patience_s: float) -> None:
        self._pipe = pipe
        self._patience_s = patience_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not select.select([self._pipe], [], [], self._patience_s)[0]:
            raise TimeoutError
        return os.readv(self._pipe, [buffer])
