"""Try again until a deadline, with growing pauses.

Promises: the first success is returned; an error that `is_temporary` does not recognise is raised at once; after the deadline the last
error is raised as it came. Each retry is logged as a warning with its cause, the pause and the time left. Pauses are shortened by up to
half at random, so that processes that failed together do not return together. Clock, sleep and randomness are arguments.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from components.errors import first_line

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
    what: str,
    log: logging.Logger,
    policy: RetryPolicy,
    is_temporary: Callable[[Exception], bool],
    describe: Callable[[Exception], str] = first_line,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> T:
    """Return the result of `call`, trying again after temporary errors while the policy's deadline has not passed.

    `what` is being done and `describe` words the cause, both for `log`; `uniform(low, high)` draws the pauses.
    """
    started_s, pause_s, attempt = clock(), policy.first_pause_s, 0
    while True:
        attempt += 1
        try:
            return call()
        except Exception as error:
            left_s = policy.deadline_s - (clock() - started_s)
            if not is_temporary(error) or pause_s > left_s:
                raise
            drawn_s = uniform(pause_s / 2, pause_s)
            log.warning(
                "%s failed, attempt %d: %s; next attempt in %.1f s, giving up in %.0f s",
                what,
                attempt,
                describe(error),
                drawn_s,
                left_s,
                extra={"topic": what},
            )
        sleep(drawn_s)
        pause_s = min(pause_s * 2, policy.longest_pause_s)
