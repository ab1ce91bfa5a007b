"""Handle of one decoder process.

Promises: the process gets no secret, one open file and two pipes; a request returns or raises within its timeout.
"""

import json
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from components.ingest.candidates import Candidate
from components.ingest.decoding.frames import Facts
from components.ingest.limits import Limits
from components.ingest.wire import read_blobs, read_head, write_frame
from components.system.child_environment import child_environment
from components.system.process import signal_from_outside
from components.system.python_process import python_command

_PIPE_BYTES = 2**20
_END_S = 5.0
"""How long a process may take to end after it has closed its pipes."""
_HEAP = {
    # Memory of a large image is returned at once, so that the next request's lower limit holds; that of a small one is kept.
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


class WorkerLost(Exception):
    """The worker died or was killed because it was too slow; the arguments are a verdict's code and detail."""


class WorkerKilled(WorkerLost):
    """The worker was killed from outside, as when memory runs out, which says nothing about the image."""


class FormatsMissing(Exception):
    """A candidate needs a library that the worker was started without."""


class Worker:
    """One decoding process, which may use `memory_bytes` at most and reads packed candidates from the open file `archive`."""

    def __init__(self, limits: Limits, memory_bytes: int, archive: IO[bytes] | None, *, all_formats: bool) -> None:
        self._image_s = limits.max_image_s
        open_files = [] if archive is None else [archive.fileno()]
        command = [
            *python_command("components.ingest.decoding.decoder"),
            json.dumps(asdict(limits)),
            str(memory_bytes),
            "all" if all_formats else "most",
            *map(str, open_files),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**child_environment("decoder"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **_HEAP},
            cwd="/",
            start_new_session=True,
            pass_fds=open_files,
            pipesize=_PIPE_BYTES,  # a batch in one write instead of one context switch per 64 KiB
        )

    def request(self, op: str, candidates: Sequence[Candidate], *, memory_bytes: int, timeout_s: float) -> list[tuple[Facts, bytes]]:
        """Return an answer for each candidate, computed within `memory_bytes`.

        Raises:
            WorkerLost: saying how the process ended, a `WorkerKilled` if from outside. FormatsMissing: if one needs a process with all
                formats; this one goes on.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "op": op,
            "memory_bytes": memory_bytes,
            "packed": [candidate.packed for candidate in candidates],
            "by_content": [candidate.by_content for candidate in candidates],
        }
        answers: list[tuple[Facts, bytes]] | None = None
        try:
            write_frame(self.process.stdin, request, [candidate.data for candidate in candidates])
            if not select.select([self.process.stdout], [], [], timeout_s)[0]:
                raise TimeoutError
            head = read_head(self.process.stdout)
            if head is not None and head["facts"] is None:
                raise FormatsMissing
            if head is not None:
                answers = list(zip(head["facts"], read_blobs(self.process.stdout, head), strict=True))
        except TimeoutError as error:
            self.end()
            raise WorkerLost("too_slow", f"not decoded in {timeout_s:.0f} s") from error
        except (OSError, EOFError, ValueError):
            answers = None
        if answers is None:
            killed_by = signal_from_outside(self.process, wait_s=_END_S)
            self.end()
            if killed_by is not None:
                raise WorkerKilled("decoder_died", f"the decoding process was killed by {killed_by}")
            if self.process.returncode == -signal.SIGXCPU:
                raise WorkerLost("too_slow", f"not decoded in {self._image_s:g} s of processor time")
            raise WorkerLost("decoder_died", f"the decoding process ended with status {self.process.returncode}")
        return answers

    def end(self) -> None:
        """Kill the process; it holds no state."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
