"""Calls to object storage, each retried: temporary errors until a deadline, corrupt transfers a few times, and with renewed credentials.

Promises: any other error is raised at once, and every error is one of the project's own. Safe to share between threads.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from components.errors import CelebditError
from components.storage.answers import CONFLICT, EXPIRED
from components.storage.call_errors import call_error
from components.storage.credentials import ChainCredentials
from components.storage.faults import CORRUPT_ATTEMPTS, answer_to, describe_fault, is_corrupt, is_temporary
from components.storage.uri import StoreUri
from components.system.retry import RetryPolicy, retry

T = TypeVar("T")
_log = logging.getLogger("components.storage.store")  # log lines name the client, whose calls these are

_EXPIRED_ATTEMPTS = 4
"""How often expired credentials are tried while the chain has no others: what writes new ones may be a second late."""
_CONFLICT_ATTEMPTS = 7
"""How often a write is attempted while another program writes the same object; with the pauses between them, up to half a minute."""


class RetriedCalls:
    """Runs calls of one client until they succeed, or until another attempt is of no use."""

    def __init__(
        self,
        credentials: ChainCredentials | None,
        *,
        deadline_s: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Renew `credentials`, those of the client, when they have expired; None if they cannot be renewed."""
        self._credentials = credentials
        self._policy = RetryPolicy(deadline_s=deadline_s)
        self._sleep = sleep
        self._clock = clock

    def run(self, verb: str, uri: StoreUri, call: Callable[[], T]) -> T:
        """Return the result of `call`, retrying temporary errors and corrupt transfers; other errors become the project's own."""
        attempts, corrupt, expired, conflicts, signed_with, started_s = 0, 0, 0, 0, 0, self._clock()

        def call_once() -> T:
            nonlocal attempts, signed_with
            attempts += 1
            signed_with = self._credentials.generation if self._credentials is not None else 0
            return call()

        def is_worth_retrying(error: Exception) -> bool:
            nonlocal corrupt, expired, conflicts
            if is_corrupt(error):
                corrupt += 1
                return corrupt < CORRUPT_ATTEMPTS
            if answer_to(error) is CONFLICT:
                conflicts += 1
                return conflicts < _CONFLICT_ATTEMPTS
            if answer_to(error) is EXPIRED:
                if self._credentials is not None and self._credentials.renew(signed_with):
                    return True
                expired += 1
                return expired < _EXPIRED_ATTEMPTS
            return is_temporary(error)

        try:
            result = retry(
                call_once,
                what=f"{verb} {uri}",
                log=_log,
                policy=self._policy,
                is_temporary=is_worth_retrying,
                describe=describe_fault,
                clock=self._clock,
                sleep=self._sleep,
            )
        except CelebditError:
            raise
        except Exception as cause:
            raise call_error(cause, verb, uri, attempts=attempts, elapsed_s=self._clock() - started_s) from cause
        _log.debug("%s %s took %.2f s", verb, uri, self._clock() - started_s)
        return result
