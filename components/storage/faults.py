"""The errors of object storage, and which row of the table in `answers.py` an error of a call belongs to.

Promises: pure functions of the error; texts hold the server's error code and never a header, a signature or a credential.
"""

from botocore.exceptions import ClientError

from components.errors import BadInput, CelebditError, DataRefused, shorten
from components.storage.answers import (
    ANSWERS,
    CERTIFICATE,
    CORRUPT,
    CREDENTIALS_SOURCE,
    KMS,
    NO_CREDENTIALS,
    REFUSED,
    ROLE,
    SKEWED,
    SLOW,
    UNAVAILABLE,
    UNREADABLE,
    Answer,
)
from components.storage.local_faults import (
    is_certificate_error,
    is_corrupt_transfer,
    is_lost_connection,
    is_misconfigured,
    is_session_over,
    is_source_of_credentials,
    is_unreadable,
    unreached_address,
)
from components.storage.skew import TOLERANCE, clock_difference

_BY_CODE = {code: answer for answer in ANSWERS for code in answer.codes}
_BY_STATUS = {status: answer for answer in ANSWERS for status in answer.statuses}
_LOCAL = (
    (is_certificate_error, CERTIFICATE),
    (is_misconfigured, NO_CREDENTIALS),
    (is_session_over, ROLE),
    (is_source_of_credentials, CREDENTIALS_SOURCE),
    (is_corrupt_transfer, CORRUPT),
    (is_unreadable, UNREADABLE),
    (is_lost_connection, UNAVAILABLE),
)
"""For errors that are no answer of the store, in this order."""
_CREDENTIAL_OPERATIONS = ("AssumeRole", "GetRoleCredentials", "CreateToken")
_FIRST_SERVER_ERROR = 500
CORRUPT_ATTEMPTS = 3
"""How often a transfer is attempted whose bytes arrive corrupt."""


class ObjectMissing(DataRefused):
    """No object has this key."""


class DigestMismatch(DataRefused):
    """The digest of an object is not the one in its manifest."""


class StorageRefused(BadInput):
    """The store answered, and does not allow the request: credentials, bucket or permissions are wrong."""

    def __init__(self, message: str, *, hint: str | None = None, answer: Answer = REFUSED, detail: str | None = None) -> None:
        """Say in `detail` what the answer says besides its code."""
        super().__init__(message, hint=hint)
        self.answer = answer
        self.detail = detail


class ObjectChanged(DigestMismatch):
    """An object is not the one that was listed: it was replaced, or its bytes do not have the listed ETag."""


def status(error: ClientError) -> int:
    """Return the HTTP status of an error response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: ClientError) -> str:
    """Return the error code of an error response, on one line; the status where it has none, as botocore does for HEAD."""
    return _one_line(error.response.get("Error", {}).get("Code")) or str(status(error) or "unknown")


def answer_to(error: Exception) -> Answer | None:
    """Return what kind of answer `error` is, or None if it is an error of this program or of this machine."""
    if isinstance(error, CelebditError):
        return None
    if not isinstance(error, ClientError):
        return next((answer for recognises, answer in _LOCAL if recognises(error)), None)
    failed_for_now = status(error) >= _FIRST_SERVER_ERROR
    if error.operation_name.startswith(_CREDENTIAL_OPERATIONS):
        return UNAVAILABLE if failed_for_now or _BY_CODE.get(code(error)) is SLOW else ROLE
    answer = _BY_CODE.get(code(error)) or (KMS if code(error).startswith("KMS.") else _BY_STATUS.get(status(error)))
    return answer or (UNAVAILABLE if failed_for_now else REFUSED)


def is_corrupt(error: Exception) -> bool:
    """Return whether bytes were corrupted in transfer, which is worth a few attempts and not many."""
    return isinstance(error, DigestMismatch) or answer_to(error) is CORRUPT


def is_temporary(error: Exception) -> bool:
    """Return whether the same request is likely to succeed later."""
    answer = answer_to(error)
    if answer is SKEWED and isinstance(error, ClientError):  # with clocks that agree, it was sent long after it was signed
        difference = clock_difference(error.response)
        return difference is not None and abs(difference) <= TOLERANCE
    return answer is not None and answer.action == "wait"


def refusal(error: CelebditError) -> str | None:
    """Return the server's error code if `error` is a refusal (credentials, bucket, permissions), else None."""
    cause = error.__cause__
    return code(cause) if isinstance(error, StorageRefused) and isinstance(cause, ClientError) else None


def describe_fault(error: Exception) -> str:
    """Return what an error message may contain of `error`."""
    if not isinstance(error, ClientError):
        address = unreached_address(error)
        return f"{type(error).__name__}{f': {address}' if address else ''}"
    number = str(status(error))
    return f"{number} {_one_line(error.response.get('Error', {}).get('Message'))}" if code(error) == number else f"{number} {code(error)}"


def _one_line(text: object) -> str:
    """Return what a server wrote as an error may quote it."""
    return shorten(" ".join(str(text or "").split()))
