"""Pool of decoder processes that judge untrusted images.

Promises: verdicts come in the order of the candidates and do not depend on the number of workers; a worker that dies or hangs costs the
one candidate that caused it, which gets a verdict, and is replaced; so is, once, a worker that meets a format for which it has loaded no
library. What a worker judged that was killed from outside is judged again; if that fails too, it is a temporary failure and no verdict.
Only a few batches are in memory at a time, and the memory of all workers together is bounded (`memory_budget.py`).
"""

import os
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from components.errors import TemporaryFailure
from components.ingest.candidates import Candidate
from components.ingest.decoding.frames import Facts, decode_verdict
from components.ingest.decoding.memory_budget import MEMORY_BYTES, MemoryBudget
from components.ingest.decoding.worker import FormatsMissing, Worker, WorkerKilled, WorkerLost
from components.ingest.limits import Limits
from components.ingest.verdicts import Rejected, Verdict

_BATCH_IMAGES = 32
_BATCH_BYTES = 2**20
_BATCH_PIXEL_BYTES = 8 * 2**20
_WAITING_BYTES = 32 * 2**20
_TIMEOUT_S = 60.0
_MAX_WORKERS = 8

Judged = list[tuple[Candidate, Verdict]]


def default_workers() -> int:
    """Return the number of workers for this machine: its cores, up to a maximum."""
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MAX_WORKERS))


class DecoderPool:
    """Workers that judge candidates. Use as a context manager; leaving it ends the workers."""

    def __init__(
        self,
        limits: Limits,
        *,
        workers: int,
        memory_bytes: int = MEMORY_BYTES,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._archive: IO[bytes] | None = None
        self._memory = MemoryBudget(memory_bytes)
        self._patience_s = timeout_s
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._alive: set[Worker] = set()
        self._closed = False
        self._all_formats = False
        """Whether new workers load the libraries of all formats: from the first file on that needs one."""

    def __enter__(self) -> "DecoderPool":
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        return self

    def start(self, archive: Path | None = None) -> None:
        """Start the workers, which read packed candidates from `archive`; does nothing if they are started already."""
        if self._alive:
            return
        self._archive = archive.open("rb") if archive is not None else None
        for _ in range(self._workers):
            self._idle.put(self._start_worker())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        for worker in list(self._alive):
            worker.end()
        if self._archive is not None:
            self._archive.close()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        """Yield each candidate with its verdict, in order; one that its source refused is passed through."""
        self.start()
        pending: deque[tuple[int, Future[Judged]]] = deque()
        waiting_bytes = 0
        for batch, size_bytes in _batches(candidates, max_images=self._batch_images()):
            pending.append((size_bytes, self._threads.submit(self._judge_batch, batch)))
            waiting_bytes += size_bytes
            while len(pending) > self._workers + 2 or (waiting_bytes > _WAITING_BYTES and len(pending) > 1):
                done_bytes, done = pending.popleft()
                waiting_bytes -= done_bytes
                yield from done.result()
        while pending:
            yield from pending.popleft()[1].result()

    def _batch_images(self) -> int:
        """Return how many images a batch may hold, so that its answer stays small even if all of them are re-encoded."""
        return max(1, min(_BATCH_IMAGES, _BATCH_PIXEL_BYTES // (3 * self._limits.image_px**2)))

    def thumbnail(self, data: bytes) -> bytes:
        """Return a small JPEG of an image, or nothing."""
        try:
            return self._request("image", [Candidate("", data)], self._memory.max_bytes)[0][1]
        except WorkerLost:
            return b""

    def _judge_batch(self, batch: list[Candidate]) -> Judged:
        unknown = [candidate for candidate in batch if candidate.refused is None]
        level_bytes = self._memory.initial_level(max(map(_size_bytes, unknown), default=0))
        verdicts = iter(self._verdicts(unknown, level_bytes))
        return [(candidate, candidate.refused or next(verdicts)) for candidate in batch]

    def _verdicts(self, batch: list[Candidate], level_bytes: int) -> list[Verdict]:
        """Return final verdicts, starting at a memory level that may be too low for some."""
        if not batch:
            return []
        final = level_bytes == self._memory.max_bytes
        try:
            answers = self._request("judge", batch, level_bytes)
        except WorkerLost as lost:
            if len(batch) > 1:
                return [verdict for candidate in batch for verdict in self._verdicts([candidate], level_bytes)]
            if final and isinstance(lost, WorkerKilled):
                raise TemporaryFailure(
                    f"{batch[0].name}: {lost.args[1]}, again and again",
                    hint="run it again; the system kills processes when memory runs out",
                ) from lost
            if final or lost.args[0] == "too_slow":
                return [Rejected(*lost.args)]
            return self._verdicts(batch, self._memory.max_bytes)
        verdicts = [decode_verdict(facts, blob, candidate) for candidate, (facts, blob) in zip(batch, answers, strict=True)]
        return verdicts if final else self._retry_with_more_memory(batch, verdicts, level_bytes)

    def _retry_with_more_memory(self, batch: list[Candidate], verdicts: list[Verdict], level_bytes: int) -> list[Verdict]:
        """Judge rejected candidates again with more memory, whatever the code: libraries do not always report lack of memory."""
        for number, verdict in enumerate(verdicts):
            if isinstance(verdict, Rejected) and verdict.code not in ("too_slow", "ignored", "unsupported_format"):
                short = verdict.code == "out_of_memory"
                more_bytes = self._memory.next_level(level_bytes) if short else self._memory.max_bytes
                (verdicts[number],) = self._verdicts([batch[number]], more_bytes)
        return verdicts

    def _request(self, op: str, batch: list[Candidate], level_bytes: int) -> list[tuple[Facts, bytes]]:
        with self._memory.reserve(level_bytes):
            worker = self._idle.get()
            try:
                return worker.request(op, batch, memory_bytes=level_bytes, timeout_s=self._patience_s)
            except FormatsMissing:
                self._all_formats = True
                worker.end()
                worker = self._replace_worker(worker)
                return worker.request(op, batch, memory_bytes=level_bytes, timeout_s=self._patience_s)
            finally:
                if worker.process.poll() is not None and not self._closed:
                    worker = self._replace_worker(worker)
                self._idle.put(worker)

    def _replace_worker(self, ended: Worker) -> Worker:
        self._alive.discard(ended)
        return self._start_worker()

    def _start_worker(self) -> Worker:
        worker = Worker(self._limits, self._memory.max_bytes, self._archive, all_formats=self._all_formats)
        self._alive.add(worker)
        return worker


def _size_bytes(candidate: Candidate) -> int:
    return candidate.packed.size_bytes if candidate.packed is not None else len(candidate.data)


def _batches(candidates: Iterable[Candidate], *, max_images: int) -> Iterator[tuple[list[Candidate], int]]:
    """Yield batches with the number of bytes of their candidates."""
    batch: list[Candidate] = []
    size_bytes, began_s = 0, time.monotonic()
    for candidate in candidates:
        batch.append(candidate)
        size_bytes += _size_bytes(candidate)
        if len(batch) >= max_images or size_bytes >= _BATCH_BYTES or time.monotonic() - began_s > 1.0:
            yield batch, size_bytes
            batch, size_bytes, began_s = [], 0, time.monotonic()
    if batch:
        yield batch, size_bytes
