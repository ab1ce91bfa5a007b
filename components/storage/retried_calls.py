"""Calls to object storage, each retried: temporary errors until a deadline, corrupt transfers a few times.

Promises: any other error is raised at once, and every error is one of the project's own. Safe to share between threads.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from components.errors import CelebditError
from components.storage.call_errors import call_error
from components.storage.faults import CORRUPT_ATTEMPTS, describe_fault, is_corrupt, is_temporary
from components.storage.uri import StoreUri
from components.system.retry import RetryPolicy, retry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_log = logging.getLogger("components.storage.store")  # log lines name the client, whose calls these are


class RetriedCalls:
    """Runs calls of one client until they succeed, or until another attempt is of no use."""

    def __init__(
        self,
        client: "S3Client",
        *,
        deadline_s: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_unlisted = partial(is_unlisted, client)
        self._policy = RetryPolicy(deadline_s=deadline_s)
        self._sleep = sleep
        self._clock = clock

    def run(self, verb: str, uri: StoreUri, call: Callable[[], T]) -> T:
        """Return the result of `call`, retrying temporary errors and corrupt transfers; other errors become the project's own."""
        attempts, corrupt, started_s = 0, 0, self._clock()

        def call_once() -> T:
            nonlocal attempts
            attempts += 1
            return call()

        def is_worth_retrying(error: Exception) -> bool:
            nonlocal corrupt
            if is_corrupt(error):
                corrupt += 1
                return corrupt < CORRUPT_ATTEMPTS
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
            elapsed_s = self._clock() - started_s
            raise call_error(cause, verb, uri, attempts=attempts, elapsed_s=elapsed_s, is_unlisted=self._is_unlisted) from cause
        _log.debug("%s %s took %.2f s", verb, uri, self._clock() - started_s)
        return result


def is_unlisted(client: "S3Client", uri: StoreUri) -> bool:
    """Return whether a listing does not have the key: AWS answers 403 for a key that is missing to who may not list by its rules."""
    with suppress(Exception):  # the refusal itself matters more
        page = client.list_objects_v2(Bucket=uri.bucket, Prefix=uri.key, MaxKeys=1)
        return not any(item.get("Key") == uri.key for item in page.get("Contents", []))
    return False
