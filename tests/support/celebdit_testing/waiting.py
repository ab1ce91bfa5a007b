"""Wait for a condition with a time limit, in one place for all tests and test servers."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object],
    *,
    timeout_s: float = 10.0,
    every_s: float = 0.01,
    alive: Callable[[], bool] = lambda: True,
    reason: Callable[[], object] = lambda: "",
) -> float:
    """Return the seconds until `condition` held.

    Raises:
        AssertionError: with `reason()`, if it does not hold within `timeout_s`, or as soon as `alive()` is false.
    """
    start_s = time.monotonic()
    while not condition():
        assert alive(), f"ended too early: {reason()}"
        assert time.monotonic() - start_s < timeout_s, f"not within {timeout_s:.0f} s: {reason()}"
        time.sleep(every_s)
    return time.monotonic() - start_s
