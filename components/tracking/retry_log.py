"""Logs every request that MLflow's client repeats, as a warning like those of `components/system/retry.py`.

The client leaves retries to urllib3, which logs each at level DEBUG with its `Retry` object. A filter on that logger is the one hook that
needs no private name of either package (MLflow 3.17, urllib3 2).
"""

import logging

from urllib3.util import Retry

from components.errors import first_line

_LOG = logging.getLogger(__name__)


class RetryFilter(logging.Filter):
    """Passes no record, and logs a warning for each that tells of a repeated request."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        retry = next((argument for argument in arguments if isinstance(argument, Retry)), None)
        if retry is not None and retry.history and retry.history[-1].redirect_location is None:
            _log(retry)
        return False


class DuplicateFilter(logging.Filter):
    """Drops urllib3's own warning about a connection that failed, which has neither pause nor limit."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Retrying (")


def log_retries() -> None:
    """Log from now on every request that this process repeats through urllib3; further calls change nothing."""
    retries, connections = logging.getLogger("urllib3.util.retry"), logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(filter_, RetryFilter) for filter_ in retries.filters):
        retries.setLevel(logging.DEBUG)
        retries.addFilter(RetryFilter())
        connections.addFilter(DuplicateFilter())


def _log(retry: Retry) -> None:
    last = retry.history[-1]
    what = f"{last.method} {(last.url or '').partition('?')[0]}"
    cause = f"status {last.status}" if last.error is None else first_line(last.error)
    _LOG.warning(
        "%s failed, attempt %d: %s; next attempt in about %.1f s, giving up after %s more",
        what,
        len(retry.history),
        cause,
        retry.get_backoff_time(),
        retry.total,
        extra={"topic": what},
    )
