"""The error that a failed call to object storage ends with: the project's own, with what to do about it.

Does not retry; which errors are temporary is in `faults.py`.
"""

from collections.abc import Callable

from botocore.exceptions import ClientError, NoCredentialsError

from components.errors import BadInput, StorageUnavailable, first_line
from components.storage.faults import (
    MISCONFIGURED,
    DigestMismatch,
    ObjectMissing,
    StorageRefused,
    code,
    describe_fault,
    is_corrupt,
    is_refusal,
    is_temporary,
    is_unreadable,
    status,
)
from components.storage.uri import StoreUri


def call_error(
    cause: Exception, verb: str, uri: StoreUri, *, attempts: int, elapsed_s: float, is_unlisted: Callable[[StoreUri], bool]
) -> Exception:
    """Return the error to raise for `cause`, the last of `attempts` to `verb` an object; `is_unlisted` looks for a key in a listing."""
    if isinstance(cause, ClientError) and is_refusal(cause):
        return _refusal_error(cause, verb, uri, is_unlisted=is_unlisted)
    if isinstance(cause, MISCONFIGURED):
        return _request_error(cause, verb, uri)
    if is_corrupt(cause):
        return DigestMismatch(f"{verb} {uri}: checksum mismatch, {attempts} attempts", hint="check the network path")
    if isinstance(cause, ClientError) and status(cause) == 404 and code(cause) != "NoSuchBucket" and verb == "get":
        return ObjectMissing(f"{uri} does not exist")
    if isinstance(cause, ClientError) or is_temporary(cause) or is_unreadable(cause):
        tries = f"{attempts} time{'s' if attempts > 1 else ''} in {elapsed_s:.0f} s"
        return StorageUnavailable(
            f"{verb} {uri} failed {tries} (last: {describe_fault(cause)})",
            hint="check the path to the store: its answers are not those of an S3 server"
            if is_unreadable(cause)
            else "run it again when object storage is back: finished work is kept",
        )
    return cause


def _refusal_error(cause: ClientError, verb: str, uri: StoreUri, *, is_unlisted: Callable[[StoreUri], bool]) -> Exception:
    """Return the error for a request that the store does not allow."""
    if verb == "get" and status(cause) == 403 and is_unlisted(uri):
        return ObjectMissing(f"{uri} does not exist")
    return StorageRefused(
        f"object storage refuses to {verb} {uri}: {describe_fault(cause)}",
        hint="check the bucket's name, the credentials (AWS_ACCESS_KEY_ID, ...) and the permissions to put, get, list and delete",
    )


def _request_error(cause: Exception, verb: str, uri: StoreUri) -> BadInput:
    """Return the error for a request that was never sent."""
    if isinstance(cause, NoCredentialsError):
        return BadInput("no S3 credentials are configured", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return BadInput(f"{verb} {uri} cannot be requested: {first_line(cause)}", hint="check the AWS_ variables and the name")
