"""What an error from object storage means: pass and try again, refused, missing, or damaged.

Promises: pure functions of the error; texts hold the server's code and never a header, a signature or a credential.
"""

from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError, NoCredentialsError, ResponseStreamingError

from components.errors import BadInput, CelebditError, DataRefused

_PASSING_CODES = frozenset({"SlowDown", "RequestTimeout", "ExpiredToken", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable"})
_DAMAGED_CODES = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_REFUSALS = (400, 401, 403)
DAMAGED_TRIES = 3
"""How often bytes are sent or asked for again that changed on their way."""


class ObjectMissing(DataRefused):
    """There is no object under this key."""


class DigestMismatch(DataRefused):
    """The bytes of an object are not those that its manifest names."""


class Incomplete(Exception):
    """A response ended before it was whole; what arrived is kept and the rest asked for again."""


def status(error: ClientError) -> int:
    """Return the HTTP status of a refusal."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: ClientError) -> str:
    """Return the server's own word for a refusal."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def is_damaged(error: Exception) -> bool:
    """Return whether bytes changed on their way; a few tries are worth it, many are not."""
    return isinstance(error, DigestMismatch | FlexibleChecksumError) or (isinstance(error, ClientError) and code(error) in _DAMAGED_CODES)


def is_temporary(error: Exception) -> bool:
    """Return whether the same request may well succeed later."""
    if isinstance(error, ClientError):
        return status(error) >= 500 or status(error) in (408, 429) or code(error) in _PASSING_CODES
    if isinstance(error, NoCredentialsError | CelebditError):
        return False
    if isinstance(error, ResponseStreamingError | Incomplete):
        return True
    # An OSError with a file name is about a local file, one without about a connection.
    return isinstance(error, BotoCoreError) or (isinstance(error, OSError) and error.filename is None)


def refusal(error: CelebditError) -> str | None:
    """Return the server's code if `error` came from a store that answers but refuses (credentials, bucket, rights), else None."""
    cause = error.__cause__
    if isinstance(error, BadInput) or not isinstance(cause, ClientError):
        return None
    return code(cause) if status(cause) in _REFUSALS or code(cause) == "NoSuchBucket" else None


def last_word(error: Exception) -> str:
    """Return what an error message may say of `error`."""
    return f"{status(error)} {code(error)}" if isinstance(error, ClientError) else type(error).__name__
