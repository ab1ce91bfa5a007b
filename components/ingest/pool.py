"""Decoding in worker processes: many at once, none able to harm this one.

Promises: verdicts come back in the order of the candidates, whatever the number of workers; a worker that dies or hangs costs the one
candidate that did it, which gets a verdict, and is replaced; no more than a few batches are in memory, however many images there are.
"""

import json
import os
import queue
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from components.ingest.candidates import Candidate
from components.ingest.decoder import read_frame, write_frame
from components.ingest.images import Limits
from components.ingest.verdicts import Accepted, Rejected, Verdict

MEMORY_BYTES = 320 * 2**20
_BATCH_IMAGES = 16
_BATCH_BYTES = 2**20
_PIPE_BYTES = 2**20
_PATIENCE_S = 60.0
_MOST_WORKERS = 8


def default_workers() -> int:
    """Return how many workers this machine feeds well."""
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_WORKERS))


class _WorkerLost(Exception):
    """The worker died or was killed for being too slow."""


class _Worker:
    """One decoding process."""

    def __init__(self, limits: Limits, memory_bytes: int) -> None:
        command = [sys.executable, "-m", "components.ingest.decoder", json.dumps(asdict(limits)), str(memory_bytes)]
        quiet = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=quiet,
            start_new_session=True,
            pipesize=_PIPE_BYTES,  # a batch in one go, instead of a change of process every 64 KiB
        )

    def ask(self, op: str, blobs: list[bytes], *, patience_s: float) -> list[tuple[dict[str, Any], bytes]]:
        """Return an answer for each blob.

        Raises:
            _WorkerLost: naming how the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            write_frame(self.process.stdin, (), tuple(blobs), op)
            if not select.select([self.process.stdout], [], [], patience_s)[0]:
                raise TimeoutError
            frame = read_frame(self.process.stdout)
        except TimeoutError as error:
            self.end()
            raise _WorkerLost("too_slow", f"not decoded in {patience_s:.0f} s") from error
        except (OSError, EOFError, ValueError):
            frame = None
        if frame is None:
            self.end()
            raise _WorkerLost("decoder_died", f"the decoding process ended with status {self.process.returncode}")
        header, answers = frame
        return list(zip(header["items"], answers, strict=True))

    def end(self) -> None:
        """Kill the process; it has nothing to save."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]


class DecoderPool:
    """Workers that judge candidates. Use as a context manager."""

    def __init__(self, limits: Limits, *, workers: int, memory_bytes: int = MEMORY_BYTES, patience_s: float = _PATIENCE_S) -> None:
        self._limits = limits
        self._workers = workers
        self._memory_bytes = memory_bytes
        self._patience_s = patience_s
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._alive: set[_Worker] = set()
        self._closed = False

    def __enter__(self) -> "DecoderPool":
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        for _ in range(self._workers):
            self._idle.put(self._started())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        for worker in list(self._alive):
            worker.end()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        """Yield each candidate with its verdict, in order; one that its source refused already is only passed on."""
        pending: deque[Future[list[tuple[Candidate, Verdict]]]] = deque()
        for batch in _batches(candidates):
            pending.append(self._threads.submit(self._judge_batch, batch))
            while len(pending) > 2 * self._workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()

    def thumbnail(self, data: bytes) -> bytes:
        """Return a small JPEG of an image, or nothing."""
        try:
            return self._ask("picture", [data])[0][1]
        except _WorkerLost:
            return b""

    def _judge_batch(self, batch: list[Candidate]) -> list[tuple[Candidate, Verdict]]:
        unknown = [candidate for candidate in batch if candidate.refused is None]
        verdicts = iter(self._verdicts(unknown))
        return [(candidate, candidate.refused or next(verdicts)) for candidate in batch]

    def _verdicts(self, batch: list[Candidate]) -> list[Verdict]:
        if not batch:
            return []
        try:
            answers = self._ask("judge", [candidate.data for candidate in batch])
        except _WorkerLost as lost:
            if len(batch) == 1:
                return [Rejected(*lost.args)]
            return [verdict for candidate in batch for verdict in self._verdicts([candidate])]
        return [_verdict(facts, answer, candidate.data) for candidate, (facts, answer) in zip(batch, answers, strict=True)]

    def _ask(self, op: str, blobs: list[bytes]) -> list[tuple[dict[str, Any], bytes]]:
        worker = self._idle.get()
        try:
            return worker.ask(op, blobs, patience_s=self._patience_s)
        finally:
            if worker.process.poll() is not None and not self._closed:
                self._alive.discard(worker)
                worker = self._started()
            self._idle.put(worker)

    def _started(self) -> _Worker:
        worker = _Worker(self._limits, self._memory_bytes)
        self._alive.add(worker)
        return worker


def _batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    size_bytes, began_s = 0, time.monotonic()
    for candidate in candidates:
        batch.append(candidate)
        size_bytes += len(candidate.data)
        if len(batch) >= _BATCH_IMAGES or size_bytes >= _BATCH_BYTES or time.monotonic() - began_s > 1.0:
            yield batch
            batch, size_bytes, began_s = [], 0, time.monotonic()
    if batch:
        yield batch


def _verdict(facts: dict[str, Any], answer: bytes, data: bytes) -> Verdict:
    if "code" in facts:
        return Rejected(facts["code"], facts["detail"], answer)
    kept = facts.pop("kept")
    triples = {name: tuple(facts[name]) for name in ("rules", "source_px", "mean", "std")}
    return Accepted(**{**facts, **triples, "data": data if kept else answer})
