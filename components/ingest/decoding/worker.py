"""One decoding process, seen from the process that asks it.

Promises: it gets no secret, one open file and two pipes; an answer, or the news that the process is gone, within the patience that was
asked for. Which process answers what is decided in `pool.py`.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from components.ingest.candidates import Candidate
from components.ingest.decoding.frames import Facts, read_blobs, read_head, write_frame
from components.ingest.limits import Limits

_PIPE_BYTES = 2**20
_HEAP = {
    # What a large picture took goes back at once, so that the next question's smaller allowance holds; a small one's room is kept.
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


class WorkerLost(Exception):
    """The worker died or was killed for being too slow: a verdict's code and detail."""


class Worker:
    """One decoding process, which may use `memory_bytes` at most and reads packed candidates from the open file `archive`."""

    def __init__(self, limits: Limits, memory_bytes: int, archive: IO[bytes] | None) -> None:
        given = [] if archive is None else [archive.fileno()]
        command = [
            sys.executable,
            "-m",
            "components.ingest.decoding.decoder",
            json.dumps(asdict(limits)),
            str(memory_bytes),
            *map(str, given),
        ]
        quiet = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(sys.path),
            **_HEAP,
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=quiet,
            start_new_session=True,
            pass_fds=given,
            pipesize=_PIPE_BYTES,  # a batch in one go, instead of a change of process every 64 KiB
        )

    def ask(self, op: str, candidates: Sequence[Candidate], *, memory_bytes: int, patience_s: float) -> list[tuple[Facts, bytes]]:
        """Return an answer for each candidate, made in `memory_bytes`.

        Raises:
            WorkerLost: naming how the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        head = {"op": op, "memory_bytes": memory_bytes, "packed": [candidate.packed for candidate in candidates]}
        answers: list[tuple[Facts, bytes]] | None = None
        try:
            write_frame(self.process.stdin, head, [candidate.data for candidate in candidates])
            if not select.select([self.process.stdout], [], [], patience_s)[0]:
                raise TimeoutError
            if (said := read_head(self.process.stdout)) is not None:
                answers = list(zip(said["facts"], read_blobs(self.process.stdout, said), strict=True))
        except TimeoutError as error:
            self.end()
            raise WorkerLost("too_slow", f"not decoded in {patience_s:.0f} s") from error
        except (OSError, EOFError, ValueError):
            answers = None
        if answers is None:
            self.end()
            raise WorkerLost("decoder_died", f"the decoding process ended with status {self.process.returncode}")
        return answers

    def end(self) -> None:
        """Kill the process; it has nothing to save."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
