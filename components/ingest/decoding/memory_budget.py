"""How much memory decoding may take: each worker for itself, and all together.

Promises: a verdict is a function of the candidate and of the largest allowance, not of how many others are judged at the time: what is
refused under a smaller allowance is judged again under the largest. Small allowances are everybody's; larger ones are lent out of one
sum, so that many workers together hold hardly more than one of them may.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

MEMORY_BYTES = 320 * 2**20
_SMALLER = (16 * 2**20, 96 * 2**20)
_FREE_BYTES = _SMALLER[0]
_TIMES_FILE = 8


class Allowances:
    """The steps from a small allowance to `most_bytes`, and the sum that the larger ones are lent from."""

    def __init__(self, most_bytes: int) -> None:
        self._steps = (*(step for step in _SMALLER if step < most_bytes), most_bytes)
        self._left_bytes = most_bytes
        self._changed = Condition()

    @property
    def most_bytes(self) -> int:
        """The allowance under which verdicts are final."""
        return self._steps[-1]

    def to_begin_with(self, files_bytes: int) -> int:
        """Return the smallest allowance under which files of so many bytes may well be decoded."""
        return next((step for step in self._steps if step >= _TIMES_FILE * files_bytes), self.most_bytes)

    def after(self, allowance_bytes: int) -> int:
        """Return the next larger allowance."""
        return next((step for step in self._steps if step > allowance_bytes), self.most_bytes)

    @contextmanager
    def lent(self, allowance_bytes: int) -> Iterator[None]:
        """Hold an allowance for the block, once there is enough left."""
        wanted_bytes = 0 if allowance_bytes <= _FREE_BYTES else allowance_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._left_bytes >= wanted_bytes)
            self._left_bytes -= wanted_bytes
        try:
            yield
        finally:
            with self._changed:
                self._left_bytes += wanted_bytes
                self._changed.notify_all()
