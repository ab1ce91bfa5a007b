"""Candidates of a source whose images are files of their own elsewhere: bounded before the first is read, then read several at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from components.errors import DataRefused
from components.ingest.candidates import Candidate, may_be_image
from components.ingest.limits import Budget

_AT_ONCE = 8
T = TypeVar("T")


def require_within(budget: Budget, files: Iterable[tuple[str, int]], *, label: str, noun: str) -> None:
    """Check the number of `files` (name, bytes), and the bytes that would be read of them, before any is read.

    Raises:
        DataRefused: if there are more than `budget` allows; it calls the source `label` and its files `noun`.
    """
    count = total_bytes = 0
    for name, size_bytes in files:
        count += 1
        total_bytes += min(size_bytes, budget.max_image_bytes + 1) if may_be_image(name) else 0
    if count > budget.max_entries or total_bytes > budget.max_total_bytes:
        raise DataRefused(
            f"data.source {label} has {count} {noun} and {total_bytes} bytes, more than data.max_entries "
            f"{budget.max_entries} or data.max_total_bytes {budget.max_total_bytes}",
            hint="raise them if the source is meant to be this large",
        )


def read_in_order(items: Sequence[T], read: Callable[[T], Candidate]) -> Iterator[Candidate]:
    """Yield what `read` returns for each of `items`, in their order, while the next ones are being read."""
    pending: deque[Future[Candidate]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > 2 * _AT_ONCE:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
