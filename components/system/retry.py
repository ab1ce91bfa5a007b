"""Try again until a deadline, with growing pauses.

Promises: the first success is returned; an error that `is_temporary` does not recognise is raised at once; after the deadline the last
error is raised as it came. Clock and sleep are handed in. What counts as temporary is the caller's knowledge.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to insist, and how long to wait between tries."""

    deadline_s: float
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0


def retry(
    call: Callable[[], T],
    *,
    policy: RetryPolicy,
    is_temporary: Callable[[Exception], bool],
    on_retry: Callable[[int, Exception], None] = lambda attempt, error: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return the result of `call`, trying again after temporary errors while the policy's deadline has not passed."""
    started_s, pause_s, attempt = clock(), policy.first_pause_s, 0
    while True:
        attempt += 1
        try:
            return call()
        except Exception as error:
            if not is_temporary(error) or clock() - started_s + pause_s > policy.deadline_s:
                raise
            on_retry(attempt, error)
        sleep(pause_s)
        pause_s = min(pause_s * 2, policy.longest_pause_s)
