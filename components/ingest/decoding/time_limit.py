"""A limit on the processor time that this process spends on one image.

Promises: the time is that of this process alone, so that a busy machine changes no verdict; if a library does not return to Python in time,
or suppresses the exception, the kernel ends the process a second or two later (SIGXCPU).
"""

import math
import resource
import signal
import time
from types import FrameType

_KERNEL_GRACE_S = 1


class TimeLimitReached(Exception):
    """The time for an image is used up. Not an OSError or ValueError, which parsers suppress."""


class TimeLimit:
    """Raises `TimeLimitReached` in a block once that has used `seconds` of processor time; for the main thread, one block at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._hard_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
        signal.signal(signal.SIGPROF, _raise)

    def __enter__(self) -> None:
        # Twice in a few microseconds per image, so nothing is set here that stays.
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + self.seconds) + _KERNEL_GRACE_S, self._hard_s))
        signal.setitimer(signal.ITIMER_PROF, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise(number: int, frame: FrameType | None) -> None:
    raise TimeLimitReached
