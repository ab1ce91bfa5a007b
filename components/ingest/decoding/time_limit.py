"""A limit on the processor time that this process spends on one image.

Promises: the time is that of this process alone, so that a busy machine changes no verdict; if a library does not return to Python in time,
or suppresses the exception, the kernel ends the process a second or two later (SIGXCPU).
"""

import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_KERNEL_GRACE_S = 1


class TimeLimitReached(Exception):
    """The time for an image is used up. Not an OSError or ValueError, which parsers suppress."""


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitReached` in the block once it has used `seconds` of processor time; for the main thread."""
    signal.signal(signal.SIGPROF, _raise)
    end_s = math.ceil(time.process_time() + seconds) + _KERNEL_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (end_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise(number: int, frame: FrameType | None) -> None:
    raise TimeLimitReached
