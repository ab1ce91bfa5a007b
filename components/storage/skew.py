"""How far this machine's clock is from that of a server, by the Date header of its answer.

Promises: pure but for the clock that it reads; an answer without a date is no error.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

TOLERANCE = timedelta(minutes=5)
"""What is no fault yet; object storage refuses requests that are more than 15 minutes off."""


def now() -> datetime:
    """Return this machine's time."""
    return datetime.fromtimestamp(time.time(), UTC)


def server_time(response: Mapping[str, Any]) -> datetime | None:
    """Return the time in the header of a response as boto3 gives it, or None if it has none that can be read."""
    try:
        moment = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError, TypeError):
        return None
    # No zone: "-0000", or two dates in one header, one of the server and one of a proxy. HTTP's dates are in UTC.
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def clock_difference(response: Mapping[str, Any]) -> timedelta | None:
    """Return by how much this machine's clock is ahead of the server's, or None if the response does not say."""
    theirs = server_time(response)
    return None if theirs is None else now() - theirs


def describe_skew(difference: timedelta) -> str:
    """Return a difference of clocks as a text for an error: this machine's time, the server's, and which one is ahead."""
    ours = now()
    direction = "ahead" if difference > timedelta() else "behind"
    theirs = moment_text(ours - difference)
    return f"this machine's clock says {moment_text(ours)}, that of object storage {theirs}: it is {_duration(abs(difference))} {direction}"


def moment_text(moment: datetime) -> str:
    """Return a time in UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _duration(span: timedelta) -> str:
    return f"{span.days} days" if span.days > 1 else f"{span.total_seconds() / 60:.0f} minutes"
