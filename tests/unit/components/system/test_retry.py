"""Retries."""

import logging

import pytest

from components.system.retry import RetryPolicy, retry

LOG = logging.getLogger("components.test")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_retry_insists_with_growing_pauses_until_the_deadline() -> None:
    clock, calls = Clock(), []

    def call() -> None:
        calls.append(clock.now)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        retry(
            call,
            what="call",
            log=LOG,
            policy=RetryPolicy(deadline_s=20, first_pause_s=1, longest_pause_s=4),
            is_temporary=lambda error: True,
            clock=lambda: clock.now,
            sleep=clock.sleep,
            uniform=lambda low, high: high,
        )
    assert clock.pauses[:4] == [1, 2, 4, 4]
    assert 15 <= clock.now <= 20


def test_retry_returns_the_first_success_and_raises_what_is_not_temporary_at_once() -> None:
    clock, results = Clock(), [ConnectionError("a"), ConnectionError("b"), "fine"]

    def call() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    arguments = {"what": "call", "log": LOG, "policy": RetryPolicy(deadline_s=20), "clock": lambda: clock.now, "sleep": clock.sleep}
    assert retry(call, is_temporary=lambda error: True, **arguments) == "fine"  # type: ignore[arg-type]
    results[:] = [ValueError("no")]
    with pytest.raises(ValueError, match="no"):
        retry(call, is_temporary=lambda error: isinstance(error, ConnectionError), **arguments)  # type: ignore[arg-type]
    assert len(clock.pauses) == 2
