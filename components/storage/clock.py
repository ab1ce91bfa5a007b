"""Compares this machine's clock with that of object storage, which refuses requests that are signed with another time.

Promises: one request, no retries; a store that cannot be asked is left to the probe, which reports it better.
"""

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from botocore.exceptions import BotoCoreError, ClientError, SSLError

from components.errors import BadInput
from components.storage.store import ObjectStore
from components.storage.uri import StoreUri

_TOLERANCE = timedelta(minutes=5)
_HINT = "set the clock of this machine (NTP); object storage refuses requests whose time is more than 15 minutes off"
_CERTIFICATE_DATES = ("certificate is not yet valid", "certificate has expired")


def check_clock(store: ObjectStore, prefix: StoreUri) -> str:
    """Return how far apart the clocks are, as a text.

    Raises:
        BadInput: if they are more than five minutes apart, or if no certificate is valid at this machine's time.
    """
    now = datetime.fromtimestamp(time.time(), UTC)
    try:
        headers = store.client.head_bucket(Bucket=prefix.bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    except SSLError as error:
        if any(text in str(error) for text in _CERTIFICATE_DATES):
            raise BadInput(f"object storage's certificate is not valid at this machine's time, {_text(now)}", hint=_HINT) from error
        return "not compared"
    except (BotoCoreError, OSError):
        return "not compared"
    try:
        theirs = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        return "not compared, object storage sends no date"
    if theirs.tzinfo is None:  # "-0000", or two dates in one header: one of the server and one of a proxy. HTTP's dates are in UTC
        theirs = theirs.replace(tzinfo=UTC)
    off = now - theirs
    if abs(off) > _TOLERANCE:
        direction = "ahead" if off > timedelta() else "behind"
        raise BadInput(
            f"this machine's clock says {_text(now)}, that of object storage {_text(theirs)}: it is {_duration(abs(off))} {direction}",
            hint=_HINT,
        )
    return f"within {max(1, round(abs(off).total_seconds()))} s of object storage's"


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _duration(span: timedelta) -> str:
    return f"{span.days} days" if span.days > 1 else f"{span.total_seconds() / 60:.0f} minutes"
