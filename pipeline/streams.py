"""The standard streams of the command line: always open, and messages on stderr that never stop the work.

Promises: a closed stream is replaced by the null device, so that no file or connection gets its number; a message that stderr cannot take
(a full disk, a terminal or reader that is gone) is dropped, and so are those after it. What stdout cannot take is an error as before.
"""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast


@contextmanager
def safe_streams() -> Iterator[None]:
    """Keep the promises of this module inside the block."""
    _open_closed_streams()
    before = sys.stderr
    sys.stderr = cast(TextIO, _Messages(before))
    try:
        yield
    finally:
        sys.stderr = before


def discard_stdout() -> None:
    """Write what is left for stdout, and what follows, to the null device: it could not be written, and Python would try again at exit."""
    _discard(sys.stdout)


def has_no_reader(stream: TextIO) -> bool:
    """Return whether `stream` is a pipe without a reader."""
    with suppress(OSError, ValueError):
        pipe = select.poll()
        pipe.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    return False


def _open_closed_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    # Python sets a stream to None if it was closed when the process began, and `print` would then take the other one.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


class _Messages:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # a stream of a test has no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
