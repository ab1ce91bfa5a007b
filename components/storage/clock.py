"""Compares this machine's clock with that of object storage, which refuses requests that are signed with another time.

Promises: one request, no retries; a store that cannot be asked is left to the probe, which reports it better.
"""

from botocore.exceptions import BotoCoreError, ClientError, SSLError

from components.errors import BadInput
from components.storage.answers import SET_CLOCK
from components.storage.skew import TOLERANCE, clock_difference, describe_skew, moment_text, now
from components.storage.store import ObjectStore
from components.storage.uri import StoreUri

_CERTIFICATE_DATES = ("certificate is not yet valid", "certificate has expired")


def check_clock(store: ObjectStore, prefix: StoreUri) -> str:
    """Return how far apart the clocks are, as a text.

    Raises:
        BadInput: if they are more than five minutes apart, or if no certificate is valid at this machine's time.
    """
    try:
        difference = clock_difference(store.client.head_bucket(Bucket=prefix.bucket))
    except ClientError as error:
        difference = clock_difference(error.response)
    except SSLError as error:
        if any(text in str(error) for text in _CERTIFICATE_DATES):
            raise BadInput(
                f"object storage's certificate is not valid at this machine's time, {moment_text(now())}", hint=SET_CLOCK
            ) from error
        return "not compared"
    except (BotoCoreError, OSError):
        return "not compared"
    if difference is None:
        return "not compared, object storage sends no date"
    if abs(difference) > TOLERANCE:
        raise BadInput(describe_skew(difference), hint=SET_CLOCK)
    return f"within {max(1, round(abs(difference).total_seconds()))} s of object storage's"
