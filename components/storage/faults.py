"""Classifies errors of object storage: temporary, refused, missing, or corrupt in transfer.

Promises: pure functions of the error; texts hold the server's error code and never a header, a signature or a credential.
"""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    FlexibleChecksumError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError

from components.errors import BadInput, CelebditError, DataRefused
from components.system.failures import was_raised_in

_TEMPORARY_CODES = frozenset({"SlowDown", "RequestTimeout", "ExpiredToken", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable"})
_CORRUPT_CODES = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_REFUSED_STATUS = (400, 401, 403)
MISCONFIGURED = (ConfigNotFound, ConfigParseError, NoCredentialsError, ParamValidationError, PartialCredentialsError, ProfileNotFound)
"""Errors about a request that was never sent."""
CORRUPT_ATTEMPTS = 3
"""How often a transfer is attempted whose bytes arrive corrupt."""


class ObjectMissing(DataRefused):
    """No object has this key."""


class DigestMismatch(DataRefused):
    """The digest of an object is not the one in its manifest."""


class StorageRefused(BadInput):
    """The store answered, and does not allow the request: credentials, bucket or permissions are wrong."""


class Incomplete(Exception):
    """A response ended early; the received bytes are kept and the rest is requested again."""


def status(error: ClientError) -> int:
    """Return the HTTP status of an error response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: ClientError) -> str:
    """Return the error code of an error response."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def is_corrupt(error: Exception) -> bool:
    """Return whether bytes were corrupted in transfer, which is worth a few attempts and not many."""
    return isinstance(error, DigestMismatch | FlexibleChecksumError) or (isinstance(error, ClientError) and code(error) in _CORRUPT_CODES)


def is_temporary(error: Exception) -> bool:
    """Return whether the same request is likely to succeed later."""
    if isinstance(error, ClientError):
        return status(error) >= 500 or status(error) in (408, 429) or code(error) in _TEMPORARY_CODES
    if isinstance(error, (CelebditError, *MISCONFIGURED)):
        return False
    if isinstance(error, ResponseStreamingError | ResponseParserError | Incomplete):
        return True
    # An OSError with a file name is about a local file, one without about a connection.
    return isinstance(error, BotoCoreError) or (isinstance(error, OSError) and error.filename is None)


def is_unreadable(error: Exception) -> bool:
    """Return whether boto3 cannot read the answer, as if another server than an S3 server had answered."""
    return isinstance(error, ResponseParserError) or (
        not isinstance(error, OSError | MemoryError | CelebditError | BotoCoreError | ClientError)
        and was_raised_in(error, "botocore", "urllib3")
    )


def refusal(error: CelebditError) -> str | None:
    """Return the server's error code if `error` is a refusal (credentials, bucket, permissions), else None."""
    cause = error.__cause__
    return code(cause) if isinstance(error, StorageRefused) and isinstance(cause, ClientError) else None


def is_refusal(error: Exception) -> bool:
    """Return whether the server answered that it does not allow the request, so that another attempt is of no use."""
    if not isinstance(error, ClientError) or is_temporary(error) or is_corrupt(error):
        return False
    return status(error) in _REFUSED_STATUS or code(error) in ("NoSuchBucket", "PermanentRedirect")


def describe_fault(error: Exception) -> str:
    """Return what an error message may contain of `error`."""
    if not isinstance(error, ClientError):
        return type(error).__name__
    number = str(status(error))
    # An answer to HEAD has no body, and botocore puts the number where the code would be.
    return f"{number} {error.response.get('Error', {}).get('Message', '')}" if code(error) == number else f"{number} {code(error)}"
