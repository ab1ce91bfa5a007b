"""Decoding in worker processes: many at once, none able to harm this one.

Promises: verdicts come back in the order of the candidates and are the same whatever the number of workers; a worker that dies or hangs
costs the one candidate that did it, which gets a verdict, and is replaced; no more than a few batches are in memory, however many images
there are, and the workers' memory is bounded together (`memory_budget.py`).
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

from components.ingest.candidates import Candidate
from components.ingest.decoding.memory_budget import MEMORY_BYTES, Allowances
from components.ingest.decoding.frames import Facts, heard
from components.ingest.decoding.worker import Worker, WorkerLost
from components.ingest.limits import Limits
from components.ingest.verdicts import Rejected, Verdict

_BATCH_IMAGES = 32
_BATCH_BYTES = 2**20
_BATCH_PIXEL_BYTES = 8 * 2**20
_WAITING_BYTES = 32 * 2**20
_PATIENCE_S = 60.0
_MOST_WORKERS = 8

Judged = list[tuple[Candidate, Verdict]]


def default_workers() -> int:
    """Return how many workers this machine feeds well."""
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_WORKERS))


class DecoderPool:
    """Workers that judge candidates. Use as a context manager; leaving it ends the workers."""

    def __init__(
        self,
        limits: Limits,
        *,
        workers: int,
        memory_bytes: int = MEMORY_BYTES,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._archive: IO[bytes] | None = None
        self._allowances = Allowances(memory_bytes)
        self._patience_s = patience_s
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._alive: set[Worker] = set()
        self._closed = False

    def __enter__(self) -> "DecoderPool":
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        return self

    def start(self, archive: Path | None = None) -> None:
        """Start the workers, which read packed candidates from `archive`; does nothing if they are started already."""
        if self._alive:
            return
        self._archive = archive.open("rb") if archive is not None else None
        for _ in range(self._workers):
            self._idle.put(self._started())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        for worker in list(self._alive):
            worker.end()
        if self._archive is not None:
            self._archive.close()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Verdict]]:
        """Yield each candidate with its verdict, in order; one that its source refused already is only passed on."""
        self.start()
        pending: deque[tuple[int, Future[Judged]]] = deque()
        waiting_bytes = 0
        for batch, size_bytes in _batches(candidates, most_images=self._batch_images()):
            pending.append((size_bytes, self._threads.submit(self._judge_batch, batch)))
            waiting_bytes += size_bytes
            while len(pending) > self._workers + 2 or (waiting_bytes > _WAITING_BYTES and len(pending) > 1):
                done_bytes, done = pending.popleft()
                waiting_bytes -= done_bytes
                yield from done.result()
        while pending:
            yield from pending.popleft()[1].result()

    def _batch_images(self) -> int:
        """Return how many images a batch may hold, so that its answer is small even if all of them are made anew."""
        return max(1, min(_BATCH_IMAGES, _BATCH_PIXEL_BYTES // (3 * self._limits.image_px**2)))

    def thumbnail(self, data: bytes) -> bytes:
        """Return a small JPEG of an image, or nothing."""
        try:
            return self._ask("picture", [Candidate("", data)], self._allowances.most_bytes)[0][1]
        except WorkerLost:
            return b""

    def _judge_batch(self, batch: list[Candidate]) -> Judged:
        unknown = [candidate for candidate in batch if candidate.refused is None]
        allowance_bytes = self._allowances.to_begin_with(max(map(_size_bytes, unknown), default=0))
        verdicts = iter(self._verdicts(unknown, allowance_bytes))
        return [(candidate, candidate.refused or next(verdicts)) for candidate in batch]

    def _verdicts(self, batch: list[Candidate], allowance_bytes: int) -> list[Verdict]:
        """Return final verdicts, beginning with an allowance that may be too small for some."""
        if not batch:
            return []
        final = allowance_bytes == self._allowances.most_bytes
        try:
            answers = self._ask("judge", batch, allowance_bytes)
        except WorkerLost as lost:
            if len(batch) > 1:
                return [verdict for candidate in batch for verdict in self._verdicts([candidate], allowance_bytes)]
            if final or lost.args[0] == "too_slow":
                return [Rejected(*lost.args)]
            return self._verdicts(batch, self._allowances.most_bytes)
        verdicts = [heard(facts, blob, candidate) for candidate, (facts, blob) in zip(batch, answers, strict=True)]
        return verdicts if final else self._made_sure(batch, verdicts, allowance_bytes)

    def _made_sure(self, batch: list[Candidate], verdicts: list[Verdict], allowance_bytes: int) -> list[Verdict]:
        """Judge those again with more memory that were rejected with little, for whatever reason: libraries do not always say why."""
        for number, verdict in enumerate(verdicts):
            if isinstance(verdict, Rejected):
                short = verdict.code == "out_of_memory"
                more_bytes = self._allowances.after(allowance_bytes) if short else self._allowances.most_bytes
                (verdicts[number],) = self._verdicts([batch[number]], more_bytes)
        return verdicts

    def _ask(self, op: str, batch: list[Candidate], allowance_bytes: int) -> list[tuple[Facts, bytes]]:
        with self._allowances.lent(allowance_bytes):
            worker = self._idle.get()
            try:
                return worker.ask(op, batch, memory_bytes=allowance_bytes, patience_s=self._patience_s)
            finally:
                if worker.process.poll() is not None and not self._closed:
                    self._alive.discard(worker)
                    worker = self._started()
                self._idle.put(worker)

    def _started(self) -> Worker:
        worker = Worker(self._limits, self._allowances.most_bytes, self._archive)
        self._alive.add(worker)
        return worker


def _size_bytes(candidate: Candidate) -> int:
    return candidate.packed.size_bytes if candidate.packed is not None else len(candidate.data)


def _batches(candidates: Iterable[Candidate], *, most_images: int) -> Iterator[tuple[list[Candidate], int]]:
    """Yield batches, and how many bytes their candidates have."""
    batch: list[Candidate] = []
    size_bytes, began_s = 0, time.monotonic()
    for candidate in candidates:
        batch.append(candidate)
        size_bytes += _size_bytes(candidate)
        if len(batch) >= most_images or size_bytes >= _BATCH_BYTES or time.monotonic() - began_s > 1.0:
            yield batch, size_bytes
            batch, size_bytes, began_s = [], 0, time.monotonic()
    if batch:
        yield batch, size_bytes
