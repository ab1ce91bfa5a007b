"""The error that a failed call to object storage ends with: the project's own, with what to do about it.

Promises: the row of `answers.py` decides the kind of error and the next action; the message adds what the answer itself says of it: the
region, the right that is missing, the difference of the clocks. Does not retry; see `retried_calls.py`.
"""

import re

from botocore.exceptions import ClientError, NoCredentialsError, ProxyConnectionError

from components.errors import BadInput, DataRefused, StorageUnavailable, first_line
from components.storage import answers
from components.storage.answers import Answer
from components.storage.faults import DigestMismatch, ObjectMissing, StorageRefused, answer_to, describe_fault, is_temporary
from components.storage.local_faults import describe_misconfiguration, unreached_address
from components.storage.skew import clock_difference, describe_skew
from components.storage.uri import StoreUri

_REGION = re.compile(r"[a-z]{2,4}(-[a-z0-9]+)+")
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")
_MISSING_RIGHT = re.compile(r"not authorized to perform: ([a-zA-Z0-9]+:[a-zA-Z]+)")
_RIGHTS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "CopyObject": "s3:GetObject or s3:PutObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
"""Rights that are not named like their operation."""
_READS = ("get", "look for")
_NO_STORE = "check AWS_ENDPOINT_URL: nothing there answers as the bucket does; its path may be missing or one too many"
_PROXY = "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"


def call_error(cause: Exception, verb: str, uri: StoreUri, *, attempts: int, elapsed_s: float) -> Exception:
    """Return the error to raise for `cause`, the last of `attempts` to `verb` an object; `cause` itself if it is no answer of a store."""
    answer = answer_to(cause)
    if answer is None:
        return cause
    if is_temporary(cause) or answer.action == "wait":
        tries = f"{attempts} time{'s' if attempts > 1 else ''} in {elapsed_s:.0f} s"
        return StorageUnavailable(f"{verb} {uri} failed {tries} (last: {describe_fault(cause)})", hint=_fix(answer, cause))
    if answer is answers.NO_CREDENTIALS:
        return _request_error(cause, verb, uri)
    data_errors = {
        answers.CORRUPT: DigestMismatch(f"{verb} {uri}: checksum mismatch, {attempts} attempts", hint=answer.fix),
        answers.MISSING: ObjectMissing(f"{uri} does not exist", hint=answer.fix) if verb in _READS else None,
        answers.ARCHIVED: DataRefused(f"{uri} cannot be read: it is in an archive ({describe_fault(cause)})", hint=answer.fix),
    }
    return data_errors.get(answer) or _refusal_error(answer, cause, verb, uri)


def _refusal_error(answer: Answer, cause: Exception, verb: str, uri: StoreUri) -> StorageRefused:
    """Return the error for a request that the store does not allow, or that never reaches it."""
    detail, fix = refusal_detail(answer, cause, f"bucket {uri.bucket}")
    did = f"object storage refuses to {verb} {uri}" if isinstance(cause, ClientError) else f"{verb} {uri} failed"
    message = f"{did}: {describe_fault(cause)}{f': {detail}' if detail else ''}"
    return StorageRefused(message, hint=fix or _fix(answer, cause), answer=answer, detail=detail)


def _fix(answer: Answer, cause: Exception) -> str:
    """Return the next action of the row, or the one for a server that cannot be reached or knows no such address."""
    if answer is answers.MISSING:
        return _NO_STORE
    if unreached_address(cause) is None:
        return answer.fix
    return _PROXY if isinstance(cause, ProxyConnectionError) else f"check AWS_ENDPOINT_URL, or {answer.fix}"


def refusal_detail(answer: Answer, cause: Exception, bucket: str) -> tuple[str | None, str | None]:
    """Return what the answer says besides its code, and the next action if that follows from it; `bucket` is how it is called."""
    if not isinstance(cause, ClientError):
        return (describe_misconfiguration(cause) if answer is answers.NO_CREDENTIALS else first_line(cause)), None
    if answer is answers.REGION and (region := region_of(cause)) is not None:
        return f"{bucket} is in region {region}", f"set AWS_REGION={region}"
    if answer is answers.SKEWED and (difference := clock_difference(cause.response)) is not None:
        return describe_skew(difference), None
    if answer is answers.DENIED:
        return f"the right {missing_right(cause)} is missing", None
    details = {answers.ROLE: f"{cause.operation_name} failed", answers.CONFLICT: "another program writes the same object"}
    return details.get(answer), None


def region_of(error: ClientError) -> str | None:
    """Return the bucket's region if the answer names it."""
    body = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    expected = _EXPECTED_REGION.search(body.get("Message", ""))
    named = str(headers.get("x-amz-bucket-region") or body.get("Region") or (expected[1] if expected else ""))
    return named if _REGION.fullmatch(named) else None


def missing_right(error: ClientError) -> str:
    """Return the right that an answer names as missing, or else the one that the operation needs."""
    named = _MISSING_RIGHT.search(error.response.get("Error", {}).get("Message", ""))
    return named[1] if named else _RIGHTS.get(error.operation_name, f"s3:{error.operation_name}")


def _request_error(cause: Exception, verb: str, uri: StoreUri) -> BadInput:
    """Return the error for a request that was never sent."""
    if isinstance(cause, NoCredentialsError):
        return BadInput("no S3 credentials are configured", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return BadInput(f"{verb} {uri} cannot be requested: {describe_misconfiguration(cause)}", hint=answers.NO_CREDENTIALS.fix)
