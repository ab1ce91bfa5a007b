"""Memory that decoding may take, per worker and in total.

Promises: a verdict depends on the candidate and the highest level only, because an image rejected at a lower level is judged again at the
highest. Reservations of the lowest level always succeed; larger ones share one budget, so that many workers together hold little
more than one of them may.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

MEMORY_BYTES = 320 * 2**20
_LOWER_LEVELS = (16 * 2**20, 96 * 2**20)
_UNCOUNTED_BYTES = _LOWER_LEVELS[0]
_BYTES_PER_FILE_BYTE = 8


class MemoryBudget:
    """Memory levels up to `max_bytes`, and the budget that the higher ones are reserved from."""

    def __init__(self, max_bytes: int) -> None:
        self._steps = (*(step for step in _LOWER_LEVELS if step < max_bytes), max_bytes)
        self._available_bytes = max_bytes
        self._changed = Condition()

    @property
    def max_bytes(self) -> int:
        """The highest level, at which verdicts are final."""
        return self._steps[-1]

    def initial_level(self, files_bytes: int) -> int:
        """Return the lowest level at which files of `files_bytes` bytes can probably be decoded."""
        return next((step for step in self._steps if step >= _BYTES_PER_FILE_BYTE * files_bytes), self.max_bytes)

    def next_level(self, level_bytes: int) -> int:
        """Return the next higher level."""
        return next((step for step in self._steps if step > level_bytes), self.max_bytes)

    @contextmanager
    def reserve(self, level_bytes: int) -> Iterator[None]:
        """Reserve `level_bytes` for the block; waits until enough is available."""
        wanted_bytes = 0 if level_bytes <= _UNCOUNTED_BYTES else level_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._available_bytes >= wanted_bytes)
            self._available_bytes -= wanted_bytes
        try:
            yield
        finally:
            with self._changed:
                self._available_bytes += wanted_bytes
                self._changed.notify_all()
